//! What a consistent hash is taken of: `hash_on` and `key`.

use super::read::Context;
use super::upstream::HashKey;
use crate::config::diagnostic::{At, Position, quote};
use crate::config::document::Node;
use crate::config::template::Template;
use crate::config::variables::{Known, known, suggestion};

/// The hash key of an upstream of type `chash`.
pub(super) fn build(node: &Node, at: &At<'_>, context: &mut Context<'_>) -> HashKey {
    let hash_on = node.get("hash_on").and_then(Node::as_str).unwrap_or("vars");
    if hash_on == "consumer" {
        nothing_to_read(node, hash_on, at, context);
        return HashKey::Address;
    }
    let Some(key) = node.get("key") else {
        context.error(
            node.position,
            at,
            "missing key: chash needs the name of a variable to hash, such as mqtt_client_id",
        );
        return HashKey::Address;
    };
    // A key of the wrong type has been told.
    let Some(text) = key.as_str() else {
        return HashKey::Address;
    };
    let at_key = at.key("key");
    match hash_on {
        "vars_combinations" => template(text, key.position, &at_key, context),
        "header" | "cookie" => {
            nothing_to_read(node, hash_on, at, context);
            HashKey::Address
        }
        // A wrong hash_on has been told.
        _ => variable(text, key.position, &at_key, context),
    }
}

fn nothing_to_read(node: &Node, hash_on: &str, at: &At<'_>, context: &mut Context<'_>) {
    let position = node
        .get("hash_on")
        .map_or(node.position, |hash_on| hash_on.position);
    let message = format!(
        "hash_on {hash_on} has nothing to read in a stream: the client's address is hashed"
    );
    context.warn(position, &at.key("hash_on"), message);
}

fn variable(name: &str, position: Position, at: &At<'_>, context: &mut Context<'_>) -> HashKey {
    match known(name) {
        Known::Resolvable => HashKey::Variable(name.to_string()),
        Known::Never => {
            context.warn(position, at, never(name));
            HashKey::Address
        }
        Known::Constant => {
            context.warn(position, at, constant(name));
            HashKey::Variable(name.to_string())
        }
        Known::NotHere => {
            context.warn(position, at, not_here(name));
            HashKey::Variable(name.to_string())
        }
        Known::Unknown => {
            let bare = name.trim_start_matches('$');
            let hint = match suggestion(bare).or((known(bare) == Known::Resolvable).then_some(bare))
            {
                Some(found) => format!("; did you mean {}?", quote(found)),
                None => String::new(),
            };
            let message = format!(
                "{} is no variable of a stream connection{hint}",
                quote(name)
            );
            context.error(position, at, message);
            HashKey::Address
        }
    }
}

fn template(text: &str, position: Position, at: &At<'_>, context: &mut Context<'_>) -> HashKey {
    let template = Template::parse(text);
    if template.variables().next().is_none() {
        let message = format!(
            "{} has no variable: the client's address is hashed",
            quote(text)
        );
        context.warn(position, at, message);
    }
    for name in template.variables() {
        let message = match known(name) {
            Known::Resolvable => continue,
            Known::Constant => constant(name),
            Known::Never => never(name),
            Known::NotHere => not_here(name),
            // APISIX takes any text here.
            Known::Unknown => {
                let hint = suggestion(name)
                    .map(|found| format!("; did you mean ${found}?"))
                    .unwrap_or_default();
                format!("unknown variable {} is always empty{hint}", quote(name))
            }
        };
        context.warn(position, at, message);
    }
    HashKey::Template(template)
}

fn constant(name: &str) -> String {
    format!(
        "{} is the same for every connection: alone, it puts all clients on one node",
        quote(name)
    )
}

fn never(name: &str) -> String {
    format!(
        "{} never has a value in a stream: the client's address is hashed",
        quote(name)
    )
}

fn not_here(name: &str) -> String {
    format!(
        "{} has no value here before a node is picked: the client's address is hashed",
        quote(name)
    )
}
