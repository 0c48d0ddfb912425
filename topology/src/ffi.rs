//! The engine's only foreign calls: what rdkafka 0.39 does not offer.
//!
//! - DescribeTopics, for topic ids (Metadata ≥ 10 carries them, rdkafka's
//!   metadata does not);
//! - the last known high watermark of a fetched partition;
//! - records taken from the client by the thousand instead of one by one: a third
//!   of the CPU of `BaseConsumer::poll`, which looks at the clock for each.
//!
//! Every pointer lives in a guard that frees it; none leaves this module.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::marker::PhantomData;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka::error::RDKafkaErrorCode;
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

/// A record in the client's memory, or an error of a partition.
pub struct Taken<'a> {
    /// The topic's name.
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds of UTC; −1 if there is none.
    pub timestamp_ms: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    /// Then the rest is not a record.
    pub error: Option<RDKafkaErrorCode>,
    message: *mut sys::rd_kafka_message_t,
    owner: PhantomData<&'a ()>,
}

impl Taken<'_> {
    /// Names and values of all headers, in order.
    pub fn headers(&self) -> Vec<(String, Option<Vec<u8>>)> {
        let mut found = Vec::new();
        // SAFETY: the message lives as long as `self`, and its headers as long as it;
        // they are parsed at this call, on this thread only, and copied out.
        unsafe {
            let mut headers = std::ptr::null_mut();
            let code = sys::rd_kafka_message_headers(self.message, &mut headers);
            if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return found; // there are none
            }
            let (mut name, mut value, mut n) = (std::ptr::null(), std::ptr::null(), 0);
            while sys::rd_kafka_header_get_all(headers, found.len(), &mut name, &mut value, &mut n)
                == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
            {
                let bytes = (!value.is_null())
                    .then(|| std::slice::from_raw_parts(value.cast::<u8>(), n).to_vec());
                let name = CStr::from_ptr(name).to_string_lossy().into_owned();
                found.push((name, bytes));
            }
        }
        found
    }
}

/// A queue of our own that fetched records go to, apart from the consumer's, where
/// rebalances and errors of the client stay: a batch call on that one would
/// swallow them. Must be dropped before the client.
pub struct RecordQueue {
    queue: Guard<sys::rd_kafka_queue_t>,
    taken: Vec<*mut sys::rd_kafka_message_t>,
}

// SAFETY: librdkafka's queues may be used from any thread; `taken` is empty between
// calls.
unsafe impl Send for RecordQueue {}

impl RecordQueue {
    /// An empty one.
    pub fn new<C: ClientContext>(client: &Client<C>) -> Self {
        // SAFETY: the client lives; the guard destroys the queue.
        let queue = unsafe { sys::rd_kafka_queue_new(client.native_ptr()) };
        Self {
            queue: Guard(queue, sys::rd_kafka_queue_destroy),
            taken: Vec::new(),
        }
    }

    /// Send what is fetched of a partition here. To be called before the partition
    /// is assigned: librdkafka keeps a queue that the application has chosen, until
    /// the partition is unassigned.
    pub fn capture<C: ClientContext>(
        &self,
        client: &Client<C>,
        topic: &str,
        partition: i32,
    ) -> Result<(), Error> {
        let name = CString::new(topic).map_err(|e| Error::fatal(format!("{topic}: {e}")))?;
        // SAFETY: client, name and both queues live during the calls; the handle of
        // the partition's queue is given back, the queue itself belongs to the client.
        unsafe {
            let of_partition = Guard(
                sys::rd_kafka_queue_get_partition(client.native_ptr(), name.as_ptr(), partition),
                sys::rd_kafka_queue_destroy,
            );
            if of_partition.0.is_null() {
                return Err(Error::Fatal(format!(
                    "{topic}/{partition} has no queue in the client; this is a bug"
                )));
            }
            sys::rd_kafka_queue_forward(of_partition.0, self.queue.0);
        }
        Ok(())
    }

    /// Take up to `most` records, waiting for the last of them no longer than
    /// `timeout`. Gives how many messages there were, errors counted.
    pub fn take(
        &mut self,
        most: usize,
        timeout: Duration,
        mut each: impl FnMut(Taken<'_>),
    ) -> usize {
        // Rounded up: a wait of less than a millisecond must not spin.
        let ms = timeout.as_micros().div_ceil(1000);
        let ms = i32::try_from(ms).unwrap_or(i32::MAX);
        self.taken.resize(most, std::ptr::null_mut());
        // SAFETY: the array has room for `most` pointers. Each message belongs to us
        // until it is destroyed, which is after everything borrowed from it and from
        // its neighbours (topic names) is out of use.
        unsafe {
            let n =
                sys::rd_kafka_consume_batch_queue(self.queue.0, ms, self.taken.as_mut_ptr(), most);
            // −1 is not documented for queues; nothing was taken then.
            self.taken.truncate(usize::try_from(n).unwrap_or(0));
            let mut topic = (std::ptr::null_mut(), "");
            for &at in &self.taken {
                let m = &*at;
                if m.rkt != topic.0 {
                    let name = CStr::from_ptr(sys::rd_kafka_topic_name(m.rkt));
                    // Kafka's topic names are ASCII.
                    topic = (m.rkt, name.to_str().unwrap_or_default());
                }
                let bytes = |start: *mut std::ffi::c_void, n: usize| {
                    (!start.is_null()).then(|| std::slice::from_raw_parts(start.cast::<u8>(), n))
                };
                let good = m.err == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
                each(Taken {
                    topic: topic.1,
                    partition: m.partition,
                    offset: m.offset,
                    timestamp_ms: sys::rd_kafka_message_timestamp(at, std::ptr::null_mut()),
                    key: bytes(m.key, m.key_len),
                    value: bytes(m.payload, m.len),
                    error: (!good).then(|| m.err.into()),
                    message: at,
                    owner: PhantomData,
                });
            }
        }
        let n = self.taken.len();
        self.give_back();
        n
    }

    fn give_back(&mut self) {
        for at in self.taken.drain(..) {
            // SAFETY: taken from the queue and not destroyed before.
            unsafe { sys::rd_kafka_message_destroy(at) }
        }
    }
}

impl Drop for RecordQueue {
    fn drop(&mut self) {
        // Only after a panic is there anything.
        self.give_back();
    }
}
