//! The documents of the control API for people.

use std::fmt::Write;

use serde_json::Value;

/// Rows of one table; `--format json` has them all.
const MAX_ROWS: usize = 40;

/// How a column is aligned.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}
use Align::{Left, Right};

/// `/v1/status`.
pub(super) fn overview(status: &Value) -> String {
    let mut out = String::new();
    let state = match status["not_ready_because"].as_str() {
        None => "ready".to_owned(),
        Some(why) => format!("not ready: {why}"),
    };
    let load = match (
        &status["last_load"],
        status["last_load"]["applied"].as_bool(),
    ) {
        (Value::Null, _) => "not loaded yet".to_owned(),
        (load, Some(true)) => format!("loaded {}", text(&load["at"])),
        (load, _) => format!(
            "reload refused {}: what was loaded before stays in service, the log says why",
            text(&load["at"])
        ),
    };
    let uptime = duration(status["uptime_seconds"].as_f64().unwrap_or_default());
    fields(
        &mut out,
        &[
            ("version", text(&status["version"])),
            (
                "process",
                format!("{}, up {uptime}, {state}", status["pid"]),
            ),
            ("configuration", text(&status["config"])),
            (
                "routes file",
                format!("{}, {load}", text(&status["standalone_file"])),
            ),
            (
                "connections",
                format!(
                    "{} of at most {}",
                    status["connections"]["live"], status["connections"]["limit"]
                ),
            ),
        ],
    );
    let listeners = rows(&status["listeners"], |listener| {
        vec![
            text(&listener["address"]),
            text(&listener["tls"]),
            text(&listener["connections"]),
        ]
    });
    let head = [("LISTENER", Left), ("TLS", Left), ("CONNECTIONS", Right)];
    table(&mut out, &head, &busiest(listeners));
    let routes = rows(&status["routes"], |route| {
        let target = match route["error"].as_str() {
            Some(error) => error.to_owned(),
            None => text(&route["upstream"]),
        };
        vec![text(&route["id"]), target, text(&route["connections"])]
    });
    let head = [("ROUTE", Left), ("UPSTREAM", Left), ("RELAYED", Right)];
    table(&mut out, &head, &busiest(routes));
    let mut nodes = Vec::new();
    for upstream in status["upstreams"].as_array().into_iter().flatten() {
        let mut name = (text(&upstream["id"]), text(&upstream["balancer"]));
        let mut own = rows(&upstream["nodes"], |node| node_row(&mut name, node));
        if own.is_empty() {
            let mut row = vec![name.0, name.1, "no nodes".to_owned()];
            row.resize(8, String::new());
            own.push(row);
        }
        nodes.extend(own);
    }
    let head = [
        ("UPSTREAM", Left),
        ("BALANCER", Left),
        ("NODE", Left),
        ("PRIORITY", Right),
        ("WEIGHT", Right),
        ("HEALTH", Left),
        ("CONNECTIONS", Right),
        ("SHARE", Right),
    ];
    table(&mut out, &head, &nodes);
    out
}

/// The upstream is named in the row of its first node.
fn node_row(name: &mut (String, String), node: &Value) -> Vec<String> {
    let (upstream, balancer) = std::mem::take(name);
    let unresolved = node["addresses"].as_array().is_some_and(Vec::is_empty);
    let health = match (unresolved, &node["status"]) {
        (true, _) => "no address".to_owned(),
        (false, Value::Null) => "not checked".to_owned(),
        (false, status) => text(status).replace('_', " "),
    };
    let share = node["share"].as_f64().unwrap_or_default() * 100.0;
    vec![
        upstream,
        balancer,
        text(&node["node"]),
        text(&node["priority"]),
        text(&node["weight"]),
        health,
        text(&node["connections"]),
        format!("{share:.1} %"),
    ]
}

/// `/v1/connections?client_id=…`.
pub(super) fn connections(id: &str, found: &Value) -> String {
    let mut out = String::new();
    for connection in found["connections"].as_array().into_iter().flatten() {
        if !out.is_empty() {
            out.push('\n');
        }
        let tls = |key: &str, address: &str| match connection[key].as_bool() {
            Some(true) => format!("{}, over TLS", text(&connection[address])),
            _ => text(&connection[address]),
        };
        let since = |key: &str| duration(connection[key].as_f64().unwrap_or_default());
        let bytes = |key: &str| format!("{} bytes", connection[key]);
        fields(
            &mut out,
            &[
                ("client id", id.escape_debug().to_string()),
                ("client", tls("tls", "client")),
                ("listener", text(&connection["listener"])),
                ("route", text(&connection["route"])),
                ("upstream", text(&connection["upstream"])),
                ("node", tls("tls_to_node", "node")),
                ("age", since("age_seconds")),
                ("silent for", since("silent_seconds")),
                ("to broker", bytes("to_broker_bytes")),
                ("to client", bytes("to_client_bytes")),
            ],
        );
    }
    out
}

/// A value without quotes; `-` for none.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn rows(list: &Value, row: impl FnMut(&Value) -> Vec<String>) -> Vec<Vec<String>> {
    list.as_array().into_iter().flatten().map(row).collect()
}

/// Rows that end with a count, as they are; the largest counts first where not all can be shown.
fn busiest(mut rows: Vec<Vec<String>>) -> Vec<Vec<String>> {
    if rows.len() > MAX_ROWS {
        let count = |row: &Vec<String>| row.last().and_then(|last| last.parse::<u64>().ok());
        rows.sort_by_key(|row| std::cmp::Reverse(count(row)));
    }
    rows
}

/// Names and values, one below the other.
fn fields(out: &mut String, fields: &[(&str, String)]) {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in fields {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:width$}  {value}");
    }
}

/// A table with aligned columns, behind an empty line. Nothing, where it has no rows.
fn table(out: &mut String, head: &[(&str, Align)], rows: &[Vec<String>]) {
    if rows.is_empty() {
        return;
    }
    let shown = &rows[..rows.len().min(MAX_ROWS)];
    let length = |text: &str| text.chars().count();
    let width = |column: usize| {
        let cells = shown.iter().map(|row| length(&row[column]));
        cells.max().unwrap_or(0).max(length(head[column].0))
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let titles: Vec<String> = head.iter().map(|(title, _)| (*title).to_owned()).collect();
    out.push('\n');
    for row in std::iter::once(&titles).chain(shown) {
        let cells = row.iter().zip(&widths).zip(head);
        let cells = cells.map(|((cell, &width), (_, align))| match align {
            Left => format!("{cell:<width$}"),
            Right => format!("{cell:>width$}"),
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        out.push_str(line.trim_end());
        out.push('\n');
    }
    let more = rows.len() - shown.len();
    if more > 0 {
        let _ = writeln!(out, "… and {more} more; --format json has them all");
    }
}

/// The two largest units that say something.
fn duration(seconds: f64) -> String {
    let whole = seconds as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) if whole < 10 => format!("{seconds:.1} s"),
        (0, 0, 0) => format!("{whole} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", whole % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn durations_have_two_units() {
        for (seconds, expected) in [
            (0.0, "0.0 s"),
            (9.94, "9.9 s"),
            (59.0, "59 s"),
            (61.0, "1 min 1 s"),
            (7_300.0, "2 h 1 min"),
            (100_000.0, "1 d 3 h"),
        ] {
            assert_eq!(duration(seconds), expected);
        }
    }

    #[test]
    fn columns_are_aligned() {
        let node = |name: &str, connections: u64, share: f64| {
            json!({"node": name, "priority": 0, "weight": 1, "status": "mostly_healthy",
                   "addresses": ["x"], "connections": connections, "share": share})
        };
        let shown = overview(&json!({
            "version": "1.0", "pid": 7, "uptime_seconds": 3, "not_ready_because": null,
            "config": "/c", "standalone_file": "/s",
            "last_load": {"at": "T", "applied": false},
            "connections": {"live": 1000, "limit": 9},
            "listeners": [{"address": "0.0.0.0:9100", "tls": null, "connections": 1000}],
            "routes": [{"id": "r", "error": "nowhere", "connections": 0}],
            "upstreams": [
                {"id": "brokers", "balancer": "roundrobin", "nodes": [
                    node("10.0.0.1:1883", 990, 0.99), node("b.test:1", 10, 0.01)]},
                {"id": "none", "balancer": "ewma", "nodes": []},
            ],
        }));
        let expected = "\
version        1.0
process        7, up 3.0 s, ready
configuration  /c
routes file    /s, reload refused T: what was loaded before stays in service, the log says why
connections    1000 of at most 9

LISTENER      TLS  CONNECTIONS
0.0.0.0:9100  -           1000

ROUTE  UPSTREAM  RELAYED
r      nowhere         0

UPSTREAM  BALANCER    NODE           PRIORITY  WEIGHT  HEALTH          CONNECTIONS   SHARE
brokers   roundrobin  10.0.0.1:1883         0       1  mostly healthy          990  99.0 %
                      b.test:1              0       1  mostly healthy           10   1.0 %
none      ewma        no nodes
";
        assert_eq!(shown, expected, "{shown}");
    }

    #[test]
    fn a_long_table_is_cut() {
        let row = |index: usize| vec![index.to_string()];
        let rows: Vec<_> = (0..MAX_ROWS + 2).map(row).collect();
        assert_eq!(busiest(rows[..5].to_vec()), rows[..5]);
        let mut out = String::new();
        table(&mut out, &[("N", Right)], &busiest(rows));
        assert_eq!(out.lines().nth(2), Some("41"), "{out}");
        assert_eq!(out.lines().count(), MAX_ROWS + 3);
        assert!(out.ends_with("… and 2 more; --format json has them all\n"));
    }
}
