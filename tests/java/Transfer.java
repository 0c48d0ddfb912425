// What a Java application does with a broker, by Apache Kafka's own client: topics by the admin client, an idempotent
// producer, a consumer group that consumes, transforms and produces in transactions of which every third is aborted
// and done again, and a read_committed reader that must then see every record once.
//
// usage: java -cp 'LIBS/*' Transfer.java BOOTSTRAP RECORDS        (prints "transferred RECORDS", exit code 0)

import java.time.Duration;
import java.util.*;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.*;

public class Transfer {
    static final Duration POLL = Duration.ofMillis(500);

    static Map<String, Object> properties(String bootstrap, Object... pairs) {
        Map<String, Object> p = new HashMap<>();
        p.put("bootstrap.servers", bootstrap);
        for (int i = 0; i < pairs.length; i += 2) p.put((String) pairs[i], pairs[i + 1]);
        return p;
    }

    static KafkaProducer<String, String> producer(Map<String, Object> p) {
        return new KafkaProducer<>(p, new StringSerializer(), new StringSerializer());
    }

    static KafkaConsumer<String, String> consumer(String bootstrap, String group) {
        return new KafkaConsumer<>(properties(bootstrap, "group.id", group, "auto.offset.reset", "earliest",
            "enable.auto.commit", "false", "isolation.level", "read_committed", "max.poll.records", "50"),
            new StringDeserializer(), new StringDeserializer());
    }

    public static void main(String[] args) throws Exception {
        String bootstrap = args[0];
        int records = Integer.parseInt(args[1]);
        try (Admin admin = Admin.create(properties(bootstrap))) {
            admin.createTopics(List.of(new NewTopic("java-in", 3, (short) 1), new NewTopic("java-out", 3, (short) 1)))
                .all().get(30, TimeUnit.SECONDS);
        }
        try (var out = producer(properties(bootstrap, "enable.idempotence", "true", "compression.type", "gzip"))) {
            for (int i = 0; i < records; i++) out.send(new ProducerRecord<>("java-in", "k" + i % 17, "v" + i));
        }
        transfer(bootstrap, records);
        verify(bootstrap, records);
        System.out.println("transferred " + records);
    }

    static void transfer(String bootstrap, int records) {
        try (var in = consumer(bootstrap, "java-transfer");
             var out = producer(properties(bootstrap, "transactional.id", "java-transfer-1"))) {
            out.initTransactions();
            in.subscribe(List.of("java-in"));
            int done = 0, turn = 0, idle = 0;
            while (done < records) {
                var batch = in.poll(POLL);
                if (batch.isEmpty()) {
                    if (++idle > 60) throw new IllegalStateException("no records for half a minute, " + done + " done");
                    continue;
                }
                idle = 0;
                out.beginTransaction();
                Map<TopicPartition, OffsetAndMetadata> next = new HashMap<>();
                for (var r : batch) {
                    out.send(new ProducerRecord<>("java-out", r.partition(), r.key(), r.value() + "!"));
                    next.put(new TopicPartition(r.topic(), r.partition()), new OffsetAndMetadata(r.offset() + 1));
                }
                if (++turn % 3 == 0) {
                    out.flush();
                    out.abortTransaction();
                    for (var tp : batch.partitions()) in.seek(tp, batch.records(tp).get(0).offset());
                    continue;
                }
                out.sendOffsetsToTransaction(next, in.groupMetadata());
                out.commitTransaction();
                done += batch.count();
            }
        }
    }

    static void verify(String bootstrap, int records) {
        Set<String> seen = new HashSet<>();
        try (var reader = consumer(bootstrap, "java-verify")) {
            reader.subscribe(List.of("java-out"));
            int idle = 0;
            while (idle < 60 && seen.size() < records) {
                var batch = reader.poll(POLL);
                idle = batch.isEmpty() ? idle + 1 : 0;
                for (var r : batch) if (!seen.add(r.value())) throw new IllegalStateException(r.value() + " twice");
            }
        }
        for (int i = 0; i < records; i++) {
            if (!seen.contains("v" + i + "!")) throw new IllegalStateException("v" + i + " is missing");
        }
    }
}
