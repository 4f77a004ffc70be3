//! How long the decoder takes for one CONNECT, and for one more byte of an unfinished one; what it
//! costs to follow the packets of a relayed stream.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mqtt_proxy::mqtt::{DecodeOptions, Framing, Mode, Protocol, decode};

const LIMIT: usize = 16 * 1024;

fn counted(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).expect("short enough");
    [&len.to_be_bytes(), bytes].concat()
}

fn varint(mut value: usize) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let low = (value % 128) as u8;
        value /= 128;
        if value == 0 {
            out.push(low);
            return out;
        }
        out.push(low | 0x80);
    }
}

fn packet(parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    [&[0x10][..], &varint(body.len()), &body].concat()
}

/// 23 bytes: what a small device sends.
fn minimal() -> Vec<u8> {
    packet(&[b"\0\x04MQTT\x04\x02\0\x3c", &counted(b"sensor-42")])
}

/// MQTT 5 with properties, a Will, user name and password.
fn full() -> Vec<u8> {
    let properties = [
        &[
            0x11, 0, 0, 0x0e, 0x10, 0x21, 0, 20, 0x27, 0, 1, 0, 0, 0x22, 0, 10,
        ][..],
        &[0x26],
        &counted(b"site"),
        &counted(b"north"),
        &[0x26],
        &counted(b"firmware"),
        &counted(b"4.2.1"),
    ]
    .concat();
    let will = [
        &[0x18, 0, 0, 0, 30, 0x01, 1, 0x03][..],
        &counted(b"text/plain"),
    ]
    .concat();
    packet(&[
        b"\0\x04MQTT\x05\xee\0\x3c",
        &varint(properties.len()),
        &properties,
        &counted(b"sensor-42"),
        &varint(will.len()),
        &will,
        &counted(b"status/sensor-42"),
        &counted(b"offline"),
        &counted(b"sensor-42"),
        &counted(b"a secret of twenty-4 b."),
    ])
}

/// MQTT 5, all of the default limit, most of it User Properties.
fn largest() -> Vec<u8> {
    let pair = [&[0x26][..], &counted(b"name"), &counted(&[b'v'; 55])].concat();
    let mut properties = pair.repeat(250);
    let head = b"\0\x04MQTT\x05\x02\0\x3c";
    let fixed = 3 + head.len() + 2 + counted(b"sensor-42").len();
    let rest = LIMIT - fixed - properties.len();
    // Authentication Method fills what is left: one byte of identifier, two of length.
    properties.push(0x15);
    properties.extend(counted(&vec![b'm'; rest - 3]));
    let bytes = packet(&[
        head,
        &varint(properties.len()),
        &properties,
        &counted(b"sensor-42"),
    ]);
    assert_eq!(bytes.len(), LIMIT);
    bytes
}

fn benches(criterion: &mut Criterion) {
    let accepted = [("MQIsdp", 3), ("MQTT", 4), ("MQTT", 5)].map(|(n, l)| Protocol::new(n, l));
    let options = |mode| DecodeOptions {
        mode,
        max_packet_size: LIMIT,
        accepted: &accepted,
    };
    let mut group = criterion.benchmark_group("mqtt_connect");
    for (name, bytes) in [
        ("minimal_3_1_1", minimal()),
        ("full_5", full()),
        ("16_kib_5", largest()),
    ] {
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        for (mode, options) in [
            ("strict", options(Mode::Strict)),
            ("tolerant", options(Mode::Tolerant)),
        ] {
            let taken = decode(&bytes, &options).expect("a valid packet");
            assert!(taken.is_some(), "a whole packet");
            group.bench_function(format!("{name}/{mode}"), |bencher| {
                bencher.iter(|| decode(black_box(&bytes), black_box(&options)));
            });
        }
    }
    let bytes = largest();
    let unfinished = &bytes[..bytes.len() - 1];
    let options = options(Mode::Strict);
    group.throughput(Throughput::Elements(1));
    group.bench_function("unfinished_16_kib_5/strict", |bencher| {
        bencher.iter(|| decode(black_box(unfinished), black_box(&options)));
    });
    group.finish();
}

/// What a relay adds to each chunk that it passes on.
fn framing(criterion: &mut Criterion) {
    let publish = |payload: usize| packet_of(0x30, payload);
    let small = publish(40).repeat(1000);
    let large = publish(1024 * 1024);
    let mut group = criterion.benchmark_group("mqtt_framing");
    for (name, bytes, packets) in [("1000_small", &small, 1000), ("1_mib", &large, 1)] {
        group.throughput(Throughput::Elements(packets));
        group.bench_function(name, |bencher| {
            let mut framing = Framing::start();
            bencher.iter(|| framing.advance(black_box(bytes)));
            assert!(framing.is_at_boundary());
        });
    }
    group.finish();
}

fn packet_of(first: u8, length: usize) -> Vec<u8> {
    [&[first], &*varint(length), &*vec![b'x'; length]].concat()
}

criterion_group!(mqtt_connect, benches, framing);
criterion_main!(mqtt_connect);
