//! Certificates: finding one by name among 10, 1,000 and 10,000, loading a file of them and
//! building their contexts for the first time and again, and what a context takes of memory.
//!
//! The time of a look-up must not grow with their number, and a reload must not pay again for
//! what did not change.

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use mqtt_proxy::config::settings::Provider;
use mqtt_proxy::config::standalone::Resources;
use mqtt_proxy::source::StandaloneFile;
use mqtt_proxy::tls;
use mqtt_proxy::tls::server::Certificates;
use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::x509::{X509, X509NameBuilder};

const COUNTS: [usize; 3] = [10, 1_000, 10_000];

/// A self-signed ECDSA certificate and its key, indented as a block of YAML.
fn pair(name: &str) -> (String, String) {
    let made = || {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
        let key = PKey::from_ec_key(EcKey::generate(&group)?)?;
        let mut subject = X509NameBuilder::new()?;
        subject.append_entry_by_text("CN", name)?;
        let subject = subject.build();
        let mut builder = X509::builder()?;
        builder.set_version(2)?;
        builder.set_subject_name(&subject)?;
        builder.set_issuer_name(&subject)?;
        builder.set_pubkey(&key)?;
        builder.set_not_before(&*Asn1Time::days_from_now(0)?)?;
        builder.set_not_after(&*Asn1Time::days_from_now(365)?)?;
        builder.sign(&key, MessageDigest::sha256())?;
        Ok::<_, openssl::error::ErrorStack>((
            builder.build().to_pem()?,
            key.private_key_to_pem_pkcs8()?,
        ))
    };
    let (cert, key) = made().expect("a certificate");
    let block = |pem: Vec<u8>| {
        let text = String::from_utf8(pem).expect("PEM is text");
        text.lines()
            .map(|line| format!("      {line}\n"))
            .collect::<String>()
    };
    (block(cert), block(key))
}

fn object(number: usize) -> String {
    let name = format!("device-{number}.fleet-{}.example.com", number % 100);
    let (cert, key) = pair(&name);
    format!(
        "  - id: s{number}\n    snis: [{name}, \"*.group-{number}.example.com\"]\n    \
         cert: |\n{cert}    key: |\n{key}"
    )
}

/// The file with these objects.
fn write(folder: &Path, objects: &[String]) -> StandaloneFile {
    let path = folder.join("apisix.yaml");
    let text = format!("ssls:\n{}#END\n", objects.concat());
    fs::write(&path, text).expect("a file in a temporary folder");
    StandaloneFile {
        path,
        provider: Provider::Yaml,
        stream_plugins: vec!["mqtt-proxy".to_owned()],
    }
}

fn load(file: &StandaloneFile, previous: Option<&Resources>) -> Resources {
    let (resources, problems) = file.load(previous).expect("the file is good");
    assert!(problems.is_empty(), "{problems:?}");
    resources
}

fn build(resources: &Resources, tls: &tls::Shared, previous: &Certificates) -> Certificates {
    Certificates::build(&resources.ssls, &tls.settings, &tls.tickets, previous)
}

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0_usize) * 4096
}

fn certificates(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tls = Arc::new(tls::Shared::offline().expect("randomness"));
    let mut objects = Vec::new();
    for count in COUNTS {
        objects.extend((objects.len()..count).map(object));
        let file = write(folder.path(), &objects);
        let before = resident();
        let resources = load(&file, None);
        let loaded = resident();
        let served = build(&resources, &tls, &Certificates::default());
        let built = resident();
        let kib = |bytes: usize| bytes as f64 / 1024.0 / count as f64;
        println!(
            "memory/{count}: {:.1} KiB for each object loaded, {:.1} KiB for its context",
            kib(loaded.saturating_sub(before)),
            kib(built.saturating_sub(loaded)),
        );
        look_up(criterion, count, &served);
        reload(criterion, count, &file, &objects, &tls, &resources, &served);
    }
}

fn look_up(criterion: &mut Criterion, count: usize, served: &Certificates) {
    let last = count - 1;
    let exact = format!("device-{last}.fleet-{}.example.com", last % 100);
    let wildcard = format!("sensor.group-{last}.example.com");
    for name in [&exact, &wildcard] {
        let id = served.find(name).map(|served| served.id().to_owned());
        assert_eq!(id, Some(format!("s{last}")));
    }
    let mut group = criterion.benchmark_group("certificate");
    for (what, name) in [
        ("exact", &*exact),
        ("wildcard", &wildcard),
        ("none", "device.elsewhere.example.org"),
    ] {
        group.bench_function(BenchmarkId::new(what, count), |bencher| {
            bencher.iter(|| served.find(black_box(name)));
        });
    }
}

fn reload(
    criterion: &mut Criterion,
    count: usize,
    file: &StandaloneFile,
    objects: &[String],
    tls: &Arc<tls::Shared>,
    resources: &Resources,
    served: &Certificates,
) {
    let mut group = criterion.benchmark_group("certificates");
    group.sample_size(10);
    let none = Certificates::default();
    group.bench_function(BenchmarkId::new("load_first", count), |bencher| {
        bencher.iter(|| load(file, None));
    });
    group.bench_function(BenchmarkId::new("load_unchanged", count), |bencher| {
        bencher.iter(|| load(file, Some(resources)));
    });
    group.bench_function(BenchmarkId::new("build_first", count), |bencher| {
        bencher.iter(|| build(resources, tls, &none));
    });
    let again = load(file, Some(resources));
    group.bench_function(BenchmarkId::new("build_unchanged", count), |bencher| {
        bencher.iter(|| build(&again, tls, served));
    });
    let mut objects = objects.to_vec();
    objects[count / 2] = object(count / 2);
    let changed = write(file.path.parent().expect("a folder"), &objects);
    group.bench_function(BenchmarkId::new("load_one_changed", count), |bencher| {
        bencher.iter(|| load(&changed, Some(resources)));
    });
    let changed = load(&changed, Some(resources));
    group.bench_function(BenchmarkId::new("build_one_changed", count), |bencher| {
        bencher.iter(|| build(&changed, tls, served));
    });
}

criterion_group!(benches, certificates);
criterion_main!(benches);
