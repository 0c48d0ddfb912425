//! The engine's only foreign calls: what rdkafka 0.39 does not offer.
//!
//! - DescribeTopics, for topic ids (Metadata ≥ 10 carries them, rdkafka's
//!   metadata does not);
//! - the last known high watermark of a fetched partition.
//!
//! Every pointer lives in a guard that frees it; nothing leaves this module.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka_sys as sys;

use crate::error::Error;

/// A topic that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Described {
    pub name: String,
    pub id: [u8; 16],
    pub partitions: i32,
}

/// Frees a C object when it goes out of scope.
struct Guard<T>(*mut T, unsafe extern "C" fn(*mut T));

impl<T> Drop for Guard<T> {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the pointer came from the constructor that belongs to this
            // destructor, and is dropped once.
            unsafe { (self.1)(self.0) }
        }
    }
}

/// Id and partition count of those of `names` that exist.
pub(crate) fn describe_topics<C: ClientContext>(
    client: &Client<C>,
    names: &[&str],
    timeout: Duration,
) -> Result<Vec<Described>, Error> {
    let c_names: Vec<CString> = names
        .iter()
        .map(|n| CString::new(*n).map_err(|e| Error::fatal(format!("topic name `{n}`: {e}"))))
        .collect::<Result<_, _>>()?;
    let mut pointers: Vec<_> = c_names.iter().map(|n| n.as_ptr()).collect();
    let rk = client.native_ptr();
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `rk` lives as long as `client`, which outlives this call. The
    // collection copies the names. Queue, options and event are freed by their
    // guards, the event before the queue (declared later, dropped first). All
    // pointers read from the event are valid until it is destroyed, and are
    // copied out before.
    unsafe {
        let topics = Guard(
            sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len()),
            sys::rd_kafka_TopicCollection_destroy,
        );
        let queue = Guard(sys::rd_kafka_queue_new(rk), sys::rd_kafka_queue_destroy);
        let options = Guard(
            sys::rd_kafka_AdminOptions_new(
                rk,
                sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
            ),
            sys::rd_kafka_AdminOptions_destroy,
        );
        let mut why = [0; 256];
        sys::rd_kafka_AdminOptions_set_request_timeout(
            options.0,
            timeout_ms,
            why.as_mut_ptr(),
            why.len(),
        );
        sys::rd_kafka_DescribeTopics(rk, topics.0, options.0, queue.0);
        let event = Guard(
            sys::rd_kafka_queue_poll(queue.0, timeout_ms.saturating_add(1000)),
            sys::rd_kafka_event_destroy,
        );
        if event.0.is_null() {
            return Err(Error::Fatal(format!(
                "Kafka did not answer DescribeTopics within {timeout:?}; check the bootstrap \
                 address and that the brokers are up"
            )));
        }
        let code = sys::rd_kafka_event_error(event.0);
        if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            let text = CStr::from_ptr(sys::rd_kafka_event_error_string(event.0));
            return Err(Error::Fatal(format!(
                "DescribeTopics: {}; check the bootstrap address and that the brokers are up",
                text.to_string_lossy()
            )));
        }
        let result = sys::rd_kafka_event_DescribeTopics_result(event.0);
        if result.is_null() {
            return Err(Error::fatal("DescribeTopics: an answer of another kind"));
        }
        let mut count = 0;
        let list = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        let mut out = Vec::with_capacity(count);
        for at in 0..count {
            let topic = *list.add(at);
            let name = CStr::from_ptr(sys::rd_kafka_TopicDescription_name(topic));
            let name = name.to_string_lossy().into_owned();
            let error = sys::rd_kafka_TopicDescription_error(topic);
            let code = sys::rd_kafka_error_code(error);
            use sys::rd_kafka_resp_err_t as Resp;
            match code {
                Resp::RD_KAFKA_RESP_ERR_NO_ERROR => {}
                Resp::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART => continue,
                _ => {
                    let text = CStr::from_ptr(sys::rd_kafka_error_string(error));
                    return Err(Error::Fatal(format!(
                        "topic `{name}`: {}; grant the application's principal Describe on it",
                        text.to_string_lossy()
                    )));
                }
            }
            let uuid = sys::rd_kafka_TopicDescription_topic_id(topic);
            let mut id = [0; 16];
            if !uuid.is_null() {
                let high = sys::rd_kafka_Uuid_most_significant_bits(uuid);
                let low = sys::rd_kafka_Uuid_least_significant_bits(uuid);
                id[..8].copy_from_slice(&high.to_be_bytes());
                id[8..].copy_from_slice(&low.to_be_bytes());
            }
            let mut partitions = 0;
            sys::rd_kafka_TopicDescription_partitions(topic, &mut partitions);
            out.push(Described {
                name,
                id,
                partitions: i32::try_from(partitions).unwrap_or(i32::MAX),
            });
        }
        Ok(out)
    }
}

/// High watermark of a partition as the client last fetched it, without asking.
pub(crate) fn known_high_watermark<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    partition: i32,
) -> Option<i64> {
    let topic = CString::new(topic).ok()?;
    let (mut low, mut high) = (-1, -1);
    // SAFETY: the client and the name outlive the call; it writes two integers.
    let code = unsafe {
        sys::rd_kafka_get_watermark_offsets(
            client.native_ptr(),
            topic.as_ptr(),
            partition,
            &mut low,
            &mut high,
        )
    };
    (code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0).then_some(high)
}
