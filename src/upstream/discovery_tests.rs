//! What the records of a service mean.

use hickory_resolver::proto::rr::Name as DnsName;
use hickory_resolver::proto::rr::rdata::{A, AAAA, SRV};

use super::*;

fn srv(priority: u16, weight: u16, port: u16, target: &str) -> RData {
    let target = DnsName::from_ascii(target).unwrap();
    RData::SRV(SRV::new(priority, weight, port, target))
}

fn a(address: &str) -> RData {
    RData::A(A(address.parse().unwrap()))
}

/// Each node with weight and priority, or why there are none.
fn nodes(data: &[RData], port: Option<u16>) -> Vec<String> {
    match nodes_of(data.iter(), port) {
        Ok(nodes) => nodes
            .iter()
            .map(|node| format!("{node} w{} p{}", node.weight, node.priority))
            .collect(),
        Err(error) => vec![error.to_string()],
    }
}

/// The example of APISIX's documentation, but for the targets, which stay names.
#[test]
fn srv_records_say_port_weight_and_priority() {
    let records = [
        srv(20, 20, 1981, "B.blah.service."),
        srv(10, 60, 1980, "A.blah.service."),
    ];
    assert_eq!(
        nodes(&records, None),
        [
            "a.blah.service:1980 w60 p-10",
            "b.blah.service:1981 w20 p-20"
        ]
    );
    assert_eq!(
        nodes(&records, Some(8848))[0],
        "a.blah.service:8848 w60 p-10",
        "the port in service_name goes before that of the record"
    );
}

#[test]
fn weight_0_is_a_small_weight() {
    let records = [srv(0, 0, 1, "a."), srv(0, 9, 1, "b.")];
    assert_eq!(nodes(&records, None), ["a:1 w1 p0", "b:1 w9 p0"]);
}

#[test]
fn an_answer_in_another_order_is_the_same() {
    let mut records = [
        srv(1, 5, 1, "a."),
        srv(1, 7, 1, "a."),
        srv(0, 1, 2, "c."),
        srv(1, 1, 1, "b."),
    ];
    let there = nodes(&records, None);
    assert_eq!(there, ["c:2 w1 p0", "a:1 w7 p-1", "b:1 w1 p-1"]);
    records.reverse();
    assert_eq!(nodes(&records, None), there);
}

#[test]
fn records_that_lead_nowhere() {
    let no_port = "its records have no port: write one behind the name in service_name";
    let no_target = "its SRV records name no target";
    assert_eq!(nodes(&[srv(0, 0, 0, "a.")], None), [no_port]);
    assert_eq!(nodes(&[srv(0, 0, 0, ".")], None), [no_target]);
    assert_eq!(nodes(&[srv(0, 0, 1, "*.test.")], None), [no_target]);
    assert_eq!(nodes(&[a("10.0.0.1")], None), [no_port]);
    assert_eq!(
        nodes(&[], Some(1)),
        ["it has no record of a type that is asked for"]
    );
    assert_eq!(
        nodes(&[srv(0, 0, 0, "."), srv(0, 1, 1, "a.")], None),
        ["a:1 w1 p0"]
    );
}

#[test]
fn addresses_are_nodes_of_weight_1() {
    let records = [a("10.0.0.2"), a("10.0.0.1")];
    assert_eq!(
        nodes(&records, Some(1883)),
        ["10.0.0.1:1883 w1 p0", "10.0.0.2:1883 w1 p0"]
    );
    let six = [RData::AAAA(AAAA("::1".parse().unwrap()))];
    assert_eq!(nodes(&six, Some(1883)), ["[::1]:1883 w1 p0"]);
}

#[test]
fn a_service_is_one_whatever_its_case() {
    let services = Services::new(DiscoverySettings::default(), true);
    let of = |name: &str, port| {
        services.get(&Discovery {
            name: name.to_owned(),
            port,
        })
    };
    let one = of("Brokers.test", None);
    assert!(Arc::ptr_eq(&one, &of("brokers.TEST", None)));
    assert!(!Arc::ptr_eq(&one, &of("brokers.test", Some(1883))));
}
