//! Services: an upstream and plugins that several routes share.

use super::plugin::{self, Plugins};
use super::read::{Context, id, text};
use super::upstream::{self, Upstream};
use crate::config::diagnostic::{At, Origin};
use crate::config::document::Node;

/// One item of `services`. Unlike APISIX's stream workers in file mode, services with plugins work.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// The id as text; `arr_N` (N from 1) when the file gives none.
    pub id: String,
    /// Name for people and for the variable `service_name`.
    pub name: Option<String>,
    /// The upstream written inside the service.
    pub upstream: Option<Upstream>,
    /// The upstream by id; an inline upstream of route or service goes before it (APISIX).
    pub upstream_id: Option<String>,
    /// Plugins for every route of this service that does not configure them itself.
    pub plugins: Plugins,
    /// Where the service stands in the file; never part of equality.
    pub position: Origin,
}

/// Builds the service from an item that its table has judged.
pub(crate) fn build(
    node: &Node,
    id_text: String,
    at: &At<'_>,
    context: &mut Context<'_>,
) -> Service {
    Service {
        id: id_text,
        name: text(node, "name"),
        upstream: node
            .get("upstream")
            .map(|upstream| upstream::build(upstream, &at.key("upstream"), context)),
        upstream_id: id(node, "upstream_id"),
        plugins: plugin::build(node.get("plugins"), &at.key("plugins"), context),
        position: Origin(node.position),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::resource::testing::Judged;
    use crate::config::schema::service::SERVICE;

    #[test]
    fn a_service_with_plugins_works() {
        let judged = Judged::new(
            "{name: s, upstream_id: 7, hosts: [a.test], enable_websocket: true, \
             plugins: {mqtt-proxy: {protocol_level: 4}}}",
            &SERVICE,
            build,
        );
        assert!(judged.messages.is_empty(), "{:?}", judged.messages);
        assert_eq!(judged.value.name.as_deref(), Some("s"));
        assert_eq!(judged.value.upstream_id.as_deref(), Some("7"));
        assert!(judged.value.plugins.mqtt_proxy.is_some());
    }

    #[test]
    fn wrong_fields_are_told() {
        let judged = Judged::new("{hosts: [], plugin: {}}", &SERVICE, build);
        assert_eq!(
            judged.messages,
            [
                "x.hosts: hosts is an empty list",
                "x.plugin: unknown field \"plugin\"; did you mean \"plugins\"?"
            ]
        );
    }
}
