//! `explain`: what would happen to a connection, from the code that serves, without serving.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use clap::Args;
use serde_json::json;

use super::{Failure, Files, Format, check};
use crate::route::Request;
use crate::table::{Route, Table};
use crate::tls;
use crate::tls::identity::TlsVariables;
use crate::upstream::hash_key::{Key, Source};
use crate::upstream::node::Node;
use crate::upstream::variables::{MqttVariables, Variables};
use crate::upstream::{self, Context, Upstream};

/// The connection to explain.
#[derive(Debug, Clone, Args)]
pub(super) struct Connection {
    /// Where it arrives: a port or an address with port
    #[arg(long, value_name = "PORT|IP:PORT", value_parser = parse_listen)]
    listen: SocketAddr,
    /// The client id in its CONNECT
    #[arg(long, value_name = "ID", default_value = "")]
    client_id: String,
    /// The client's address
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    from: IpAddr,
    /// The server name of a TLS client
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// The user name in its CONNECT
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// The protocol level of its CONNECT [default: the first that the route accepts]
    #[arg(long, value_name = "3|4|5")]
    level: Option<u8>,
}

pub(super) fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    text.parse()
        .map_err(|_| "expected a port or an address with port".to_owned())
}

/// What would happen, as far as it goes.
struct Explanation<'a> {
    listen: SocketAddr,
    route: &'a Route,
    /// The verdict of each plugin and whether it lets the connection through.
    plugins: Vec<(&'static str, String, bool)>,
    upstream: Option<(&'a Upstream, Key, Vec<&'a Node>)>,
}

/// The command. Exit code 1 when no node would get the connection.
pub(super) fn explain(
    files: &Files,
    connection: &Connection,
    format: Format,
) -> Result<(), Failure> {
    let checked = check::read(files);
    for diagnostic in &checked.diagnostics {
        eprintln!("{diagnostic}");
    }
    let (Some(settings), Some(resources)) = (&checked.settings, &checked.resources) else {
        return Err(Failure::Configuration);
    };
    // Never run: offline, a name is only a name, and a service has no nodes.
    let folder = files.config.parent().unwrap_or(Path::new("."));
    let shared = upstream::Shared::new(settings, folder);
    let tls = tls::Shared::offline().map_err(|error| Failure::Running(error.to_string()))?;
    let context = Context {
        shared: &shared,
        tls: &tls,
        ssls: &resources.ssls,
    };
    let table = Table::build(resources, &context, &Table::default());
    let listen = listening(connection.listen, settings)?;
    let route = table
        .route(&Request {
            client: connection.from,
            server: listen,
            sni: connection.sni.as_deref(),
        })
        .ok_or_else(|| Failure::Running(format!("listen {listen}: not hit any route")))?;
    let explanation = examine(route, listen, connection)?;
    match format {
        Format::Text => print!("{}", as_text(&explanation)),
        Format::Json => println!("{:#}", as_json(&explanation)),
    }
    let refusal = explanation.plugins.iter().find(|(.., passes)| !passes);
    match (refusal, &explanation.upstream) {
        (Some((_, verdict, _)), _) => Err(Failure::Running(verdict.clone())),
        (None, Some((upstream, _, nodes))) if !nodes.is_empty() || upstream.service().is_some() => {
            Ok(())
        }
        _ => Err(Failure::Running("no valid upstream node".to_owned())),
    }
}

/// A port alone means the listener with that port.
fn listening(
    wanted: SocketAddr,
    settings: &crate::config::settings::Settings,
) -> Result<SocketAddr, Failure> {
    let fits = |address: &SocketAddr| {
        address.port() == wanted.port()
            && (address.ip() == wanted.ip() || address.ip().is_unspecified())
    };
    let addresses = || settings.listeners.iter().map(|listener| listener.addr);
    if addresses().any(|address| fits(&address)) {
        return Ok(wanted);
    }
    let other = addresses().find(|address| address.port() == wanted.port());
    other.ok_or_else(|| {
        Failure::Running(format!(
            "{wanted}: apisix.stream_proxy.tcp lists no such listener"
        ))
    })
}

fn examine<'a>(
    route: &'a Route,
    listen: SocketAddr,
    connection: &Connection,
) -> Result<Explanation<'a>, Failure> {
    let mut explanation = Explanation {
        listen,
        route,
        plugins: Vec::new(),
        upstream: None,
    };
    let mut mqtt = None;
    if let Some(plugin) = &route.mqtt_proxy {
        let level = connection.level.or_else(|| plugin.first_level());
        let passes = level.is_some_and(|level| plugin.accepts_level(level))
            || (connection.level.is_none() && level.is_some());
        let verdict = match passes {
            true => format!("accepts {}", plugin.describe()),
            false => format!(
                "refuses level {} (accepts {})",
                level.unwrap_or_default(),
                plugin.describe()
            ),
        };
        explanation.plugins.push(("mqtt-proxy", verdict, passes));
        mqtt = Some(MqttVariables {
            client_id: connection.client_id.clone().into_bytes(),
            username: connection.username.clone().map(String::into_bytes),
            level: level.unwrap_or_default(),
            ..MqttVariables::default()
        });
    }
    let tls = TlsVariables {
        server_name: connection.sni.clone(),
        ..TlsVariables::default()
    };
    let upstream = route
        .upstream
        .as_ref()
        .map_err(|error| Failure::Running(format!("route {}: {error}", route.id)))?;
    let key = upstream.key(&Variables {
        client: SocketAddr::new(connection.from, 0),
        server: listen,
        route_id: &route.id,
        route_name: route.name.as_deref(),
        service_id: route.service_id.as_deref(),
        service_name: route.service_name.as_deref(),
        mqtt: mqtt.as_ref(),
        tls: connection.sni.is_some().then_some(&tls),
    });
    let order = upstream.node_order(&key.bytes);
    explanation.upstream = Some((upstream, key, order));
    Ok(explanation)
}

/// The id of an upstream object; one that is written inline has none.
fn name_of(upstream: &Upstream) -> &str {
    match upstream.label().contains('/') {
        true => "inline",
        false => upstream.label(),
    }
}

fn as_text(explanation: &Explanation<'_>) -> String {
    let mut lines = vec![
        format!("listen: {}", explanation.listen),
        format!("route: {}", explanation.route.id),
    ];
    for (name, verdict, _) in &explanation.plugins {
        lines.push(format!("plugin {name}: {verdict}"));
    }
    if let Some((upstream, key, nodes)) = &explanation.upstream {
        let balancer = upstream.describe_balancer();
        lines.push(format!("upstream: {} ({balancer})", name_of(upstream)));
        let text = key.bytes.escape_ascii();
        match key.source {
            Source::Configured if key.bytes.is_empty() => {}
            Source::Configured => lines.push(format!("hash key: {text}")),
            Source::AddressFallback => lines.push(format!(
                "hash key: {text} (the client address: the key has no value)"
            )),
        }
        if let Some(service) = upstream.service() {
            let service = service.config();
            lines.push(format!(
                "nodes: those that {service} has in DNS at run time"
            ));
        }
        let numbered = nodes.iter().enumerate();
        lines.extend(numbered.map(|(index, node)| format!("{}. {}", index + 1, node.label())));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn as_json(explanation: &Explanation<'_>) -> serde_json::Value {
    let plugins: Vec<_> = explanation
        .plugins
        .iter()
        .map(|(name, verdict, _)| json!({"name": name, "verdict": verdict}))
        .collect();
    let upstream = explanation.upstream.as_ref();
    let nodes = upstream.map(|(_, _, nodes)| nodes.iter().map(|node| node.label()));
    json!({
        "listen": explanation.listen.to_string(),
        "route": explanation.route.id,
        "plugins": plugins,
        "upstream": upstream.map(|(upstream, ..)| name_of(upstream)),
        "balancer": upstream.map(|(upstream, ..)| upstream.describe_balancer()),
        "hash_key": upstream.map(|(_, key, _)| key.bytes.escape_ascii().to_string()),
        "hash_key_source": upstream.map(|(_, key, _)| match key.source {
            Source::Configured => "configured",
            Source::AddressFallback => "client address",
        }),
        "service": upstream.and_then(|(upstream, ..)| Some(upstream.service()?.config().to_string())),
        "nodes": nodes.map(Iterator::collect::<Vec<_>>).unwrap_or_default(),
    })
}
