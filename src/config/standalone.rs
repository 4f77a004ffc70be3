//! `apisix.yaml` and `apisix.json`: end mark, sections, and a verdict on each object.
//!
//! A file that cannot be read whole changes nothing. A bad object is left out, or the version that
//! was loaded before stays in service, and harms no other object.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::diagnostic::{At, Diagnostic, Position, Problems, quote};
use super::document::{Node, Parsed, Value, parse_json, parse_yaml};
use super::names::did_you_mean;
use super::resource::credentials::Credentials;
use super::resource::plugin;
use super::resource::read::{Context, id};
use super::resource::service::{self, Service};
use super::resource::ssl::{self, Ssl, SslKind};
use super::resource::stream_route::{self, StreamRoute};
use super::resource::upstream::{self, NamedUpstream};
use super::schema::service::SERVICE;
use super::schema::ssl::SSL;
use super::schema::standalone::{PLUGIN_ENTRY, STANDALONE};
use super::schema::stream_route::STREAM_ROUTE;
use super::schema::upstream::UPSTREAM;
use super::schema::{Checker, Object};
use super::settings::Provider;
use super::substitute::{VariableProblem, substitute_text, substitute_tree};

/// The good objects of a standalone file, in file order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Resources {
    /// Which connections go where; the first match counts.
    pub stream_routes: Vec<Arc<StreamRoute>>,
    /// Upstreams by id; ids are unique, as in the other lists.
    pub upstreams: Vec<Arc<NamedUpstream>>,
    /// Services by id.
    pub services: Vec<Arc<Service>>,
    /// Certificates.
    pub ssls: Vec<Arc<Ssl>>,
    /// Names with `stream: true` from the section `plugins`, which replaces `stream_plugins` of
    /// `config.yaml`; `None` when the file has no such section.
    pub plugins: Option<Vec<String>>,
}

/// Reads a standalone file.
///
/// `file` is what diagnostics call it, `env` looks up environment variables, and files by
/// `file:///path`; `stream_plugins` are
/// the plugins of `config.yaml`. Where `previous` has a good version of an object that is bad now,
/// that version stays at the object's place and the message says so.
///
/// # Errors
/// The file cannot be read whole: no `#END` in the last ten bytes (YAML), wrong syntax, a variable
/// that is not set, an empty document. Nothing must change then.
pub fn load(
    text: &str,
    file: &Path,
    format: Provider,
    env: &dyn Fn(&str) -> Option<String>,
    stream_plugins: &[String],
    previous: Option<&Resources>,
) -> Result<(Resources, Vec<Diagnostic>), Vec<Diagnostic>> {
    let mut problems = Problems::new(file);
    let Some(root) = parse(text, format, env, &mut problems) else {
        return Err(problems.finish());
    };
    let resources = resources(&root, env, stream_plugins, previous, &mut problems);
    Ok((resources, problems.finish()))
}

/// Tells what was odd about a document.
pub(crate) fn report_oddities(parsed: &Parsed, problems: &mut Problems) {
    for duplicate in &parsed.duplicates {
        problems.warn_path(
            duplicate.position,
            &duplicate.path,
            format!(
                "{} is written again below, which is what counts",
                quote(&duplicate.key)
            ),
        );
    }
    if let Some(position) = parsed.second_document {
        problems.warn(
            position,
            &At::Root,
            "a second document begins here; only the first one is read",
        );
    }
}

/// The document, unless it cannot be read whole.
fn parse(
    text: &str,
    format: Provider,
    env: &dyn Fn(&str) -> Option<String>,
    problems: &mut Problems,
) -> Option<Node> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let parsed = match format {
        Provider::Yaml => {
            if !has_end_mark(text) {
                problems.error(
                    end_of(text),
                    &At::Root,
                    "missing valid end flag: the file must end with a line #END",
                );
                return None;
            }
            let substituted = match substitute_text(text, env) {
                Ok(substituted) => substituted,
                Err(missing) => return refuse(missing, problems),
            };
            for warning in substituted.warnings {
                problems.warn(warning.position, &At::Root, warning.message);
            }
            parse_yaml(&substituted.text, substituted.map.as_ref())
        }
        Provider::Json => parse_json(text),
    };
    let mut parsed = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            let name = match format {
                Provider::Yaml => "YAML",
                Provider::Json => "JSON",
            };
            let message = format!("not {name}: {}", error.message);
            problems.error(error.position, &At::Root, message);
            return None;
        }
    };
    report_oddities(&parsed, problems);
    if format == Provider::Json {
        match substitute_tree(&mut parsed.root, env) {
            Ok(warnings) => {
                for warning in warnings {
                    problems.warn(warning.position, &At::Root, warning.message);
                }
            }
            Err(missing) => return refuse(missing, problems),
        }
    }
    let root = parsed.root;
    match &root.value {
        Value::Map(entries) if !entries.is_empty() => Some(root),
        Value::Null | Value::Map(_) => {
            problems.error(Position::START, &At::Root, "the document is empty");
            None
        }
        _ => {
            let message = format!("expected a mapping of sections, found {}", root.describe());
            problems.error(root.position, &At::Root, message);
            None
        }
    }
}

fn refuse(missing: Vec<VariableProblem>, problems: &mut Problems) -> Option<Node> {
    for variable in missing {
        problems.error(variable.position, &At::Root, variable.message);
    }
    None
}

/// APISIX looks for `#END` and blanks in the last ten bytes.
pub fn has_end_mark(text: &str) -> bool {
    let bytes = text.as_bytes();
    let last = &bytes[bytes.len().saturating_sub(10)..];
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c);
    let end = last
        .iter()
        .rposition(|byte| !blank(byte))
        .map_or(0, |at| at + 1);
    last[..end].ends_with(b"#END")
}

/// The place behind the last character.
fn end_of(text: &str) -> Position {
    let line = text.matches('\n').count() + 1;
    let last = text.rsplit('\n').next().unwrap_or_default();
    Position {
        line: u32::try_from(line).unwrap_or(u32::MAX),
        column: u32::try_from(last.chars().count() + 1).unwrap_or(u32::MAX),
    }
}

fn resources(
    root: &Node,
    env: &dyn Fn(&str) -> Option<String>,
    stream_plugins: &[String],
    previous: Option<&Resources>,
    problems: &mut Problems,
) -> Resources {
    sections(root, problems);
    let plugins = enabled_plugins(root, previous, problems);
    let effective = plugins.as_deref().unwrap_or(stream_plugins);
    let mut context = Context {
        problems,
        plugins: effective,
        env,
        credentials: previous.map(Credentials::of).unwrap_or_default(),
    };
    let upstreams = Section {
        name: "upstreams",
        table: &UPSTREAM,
        build: upstream::build_named,
        id: |named: &NamedUpstream| &named.id,
        previous: previous.map(|before| before.upstreams.as_slice()),
    }
    .read(root, &mut context);
    let services = Section {
        name: "services",
        table: &SERVICE,
        build: service::build,
        id: |service: &Service| &service.id,
        previous: previous.map(|before| before.services.as_slice()),
    }
    .read(root, &mut context);
    let ssls = Section {
        name: "ssls",
        table: &SSL,
        build: ssl::build,
        id: |ssl: &Ssl| &ssl.id,
        previous: previous.map(|before| before.ssls.as_slice()),
    }
    .read(root, &mut context);
    let stream_routes = Section {
        name: "stream_routes",
        table: &STREAM_ROUTE,
        build: stream_route::build,
        id: |route: &StreamRoute| &route.id,
        previous: previous.map(|before| before.stream_routes.as_slice()),
    }
    .read(root, &mut context);
    References::new(&upstreams, &services, &ssls).check(root, problems);
    Resources {
        stream_routes,
        upstreams,
        services,
        ssls,
        plugins,
    }
}

/// Tells of sections that are unknown or have no effect.
fn sections(root: &Node, problems: &mut Problems) {
    for entry in root.entries() {
        let at = At::Root.key(&entry.key);
        match STANDALONE.field(&entry.key) {
            Some(field) if field.has_effect => {}
            Some(field) => {
                let message = format!("{} has no effect here", field.name);
                problems.warn(entry.key_position, &at, message);
            }
            None => {
                let names = STANDALONE.fields.iter().map(|field| field.name);
                let message = format!(
                    "unknown section {}{}",
                    quote(&entry.key),
                    did_you_mean(&entry.key, names)
                );
                problems.warn(entry.key_position, &at, message);
            }
        }
    }
}

/// The section `plugins`; an invalid one leaves things as they were.
fn enabled_plugins(
    root: &Node,
    previous: Option<&Resources>,
    problems: &mut Problems,
) -> Option<Vec<String>> {
    let section = root.get("plugins")?;
    let at = At::Root.key("plugins");
    let before = problems.errors();
    if !section.is_list() {
        let message = format!("expected a list, found {}", section.describe());
        problems.error(section.position, &at, message);
    }
    for (index, item) in section.items().iter().enumerate() {
        Checker::new(problems).object(item, &PLUGIN_ENTRY, &at.index(index), false);
    }
    if problems.errors() > before {
        return previous.and_then(|previous| previous.plugins.clone());
    }
    Some(plugin::enabled(section, &at, problems))
}

/// How the objects of a section are read.
struct Section<'p, T> {
    name: &'static str,
    table: &'static Object,
    build: fn(&Node, String, &At<'_>, &mut Context<'_>) -> T,
    id: fn(&T) -> &String,
    previous: Option<&'p [Arc<T>]>,
}

/// Told with an error of which the harm is contained.
const STAYS: &str = "; the version that was loaded before stays in service";

impl<T> Section<'_, T> {
    fn read(&self, root: &Node, context: &mut Context<'_>) -> Vec<Arc<T>> {
        let Some(section) = root.get(self.name) else {
            return Vec::new();
        };
        let at = At::Root.key(self.name);
        if !section.is_list() {
            let stays = if self.previous.is_some_and(|list| !list.is_empty()) {
                STAYS
            } else {
                ""
            };
            let message = format!("expected a list, found {}{stays}", section.describe());
            context.error(section.position, &at, message);
            return self.previous.map(<[_]>::to_vec).unwrap_or_default();
        }
        let before: HashMap<&str, &Arc<T>> = self
            .previous
            .unwrap_or_default()
            .iter()
            .map(|object| ((self.id)(object).as_str(), object))
            .collect();
        let mut objects: Vec<Arc<T>> = Vec::with_capacity(section.items().len());
        // Where each id stands: its place in `objects` and its index in the file.
        let mut places: HashMap<String, (usize, usize)> = HashMap::new();
        for (index, item) in section.items().iter().enumerate() {
            let at = at.index(index);
            let (first, errors) = (context.problems.len(), context.problems.errors());
            let (id, object) = self.item(item, index, &at, context);
            let Some(id) = id else { continue };
            let place = places.get(&id).copied();
            let object = if context.problems.errors() > errors {
                // Another object of this file may bear the id already.
                let Some(earlier) = before.get(id.as_str()).filter(|_| place.is_none()) else {
                    continue;
                };
                context.problems.append_to_errors_since(first, STAYS);
                Arc::clone(earlier)
            } else {
                match object {
                    Some(object) => Arc::new(object),
                    None => continue,
                }
            };
            match place {
                Some((place, earlier)) => {
                    let position = item.get("id").map_or(item.position, |id| id.position);
                    let message = format!(
                        "id {} is also that of {}[{earlier}]; this one takes its place",
                        quote(&id),
                        self.name
                    );
                    context.warn(position, &at.key("id"), message);
                    if let Some(slot) = objects.get_mut(place) {
                        *slot = object;
                    }
                }
                None => {
                    places.insert(id, (objects.len(), index));
                    objects.push(object);
                }
            }
        }
        objects
    }

    /// Judges and builds one item; problems are in the context. No id: it cannot be told which
    /// object was meant.
    fn item(
        &self,
        item: &Node,
        index: usize,
        at: &At<'_>,
        context: &mut Context<'_>,
    ) -> (Option<String>, Option<T>) {
        Checker::new(context.problems).object(item, self.table, at, false);
        if !item.is_object() {
            return (None, None);
        }
        let id = match item.entry("id") {
            None => Some(format!("arr_{}", index + 1)),
            Some(_) => id(item, "id"),
        };
        let object = (self.build)(item, id.clone().unwrap_or_default(), at, context);
        (id, Some(object))
    }
}

/// The ids that references may name.
struct References<'a> {
    upstreams: HashSet<&'a str>,
    services: HashSet<&'a str>,
    client_certs: HashSet<&'a str>,
}

impl<'a> References<'a> {
    fn new(
        upstreams: &'a [Arc<NamedUpstream>],
        services: &'a [Arc<Service>],
        ssls: &'a [Arc<Ssl>],
    ) -> Self {
        References {
            upstreams: upstreams.iter().map(|named| named.id.as_str()).collect(),
            services: services.iter().map(|service| service.id.as_str()).collect(),
            client_certs: ssls
                .iter()
                .filter(|ssl| ssl.kind == SslKind::Client)
                .map(|ssl| ssl.id.as_str())
                .collect(),
        }
    }

    /// Tells of references to objects that are not there.
    fn check(&self, root: &Node, problems: &mut Problems) {
        for section in ["stream_routes", "services", "upstreams"] {
            let at = At::Root.key(section);
            for (index, item) in root
                .get(section)
                .map(Node::items)
                .unwrap_or_default()
                .iter()
                .enumerate()
            {
                let at = at.index(index);
                if section == "upstreams" {
                    self.client_cert(item, &at, problems);
                    continue;
                }
                if let Some(upstream) = item.get("upstream") {
                    self.client_cert(upstream, &at.key("upstream"), problems);
                }
                let kept = dangling(
                    item,
                    "upstream_id",
                    &self.upstreams,
                    "upstreams",
                    &at,
                    problems,
                );
                // A route with an upstream_id does not look at its service.
                if section == "stream_routes" && !kept {
                    dangling(
                        item,
                        "service_id",
                        &self.services,
                        "services",
                        &at,
                        problems,
                    );
                }
            }
        }
    }

    fn client_cert(&self, upstream: &Node, at: &At<'_>, problems: &mut Problems) {
        if let Some(tls) = upstream.get("tls") {
            let what = "ssls with type client";
            dangling(
                tls,
                "client_cert_id",
                &self.client_certs,
                what,
                &at.key("tls"),
                problems,
            );
        }
    }
}

/// Whether there is such a reference; one that leads nowhere is told.
fn dangling(
    item: &Node,
    key: &str,
    ids: &HashSet<&str>,
    section: &str,
    at: &At<'_>,
    problems: &mut Problems,
) -> bool {
    let Some(id) = id(item, key) else {
        return false;
    };
    if !ids.contains(id.as_str()) {
        let position = item.get(key).map_or(item.position, |node| node.position);
        let message = format!("there is no good object {} in {section}", quote(&id));
        problems.warn(position, &at.key(key), message);
    }
    true
}

#[cfg(test)]
#[path = "standalone_tests.rs"]
mod tests;
