//! The tables as JSON Schema (draft 2020-12).

use serde_json::{Map, Value as Json, json};

use super::{Field, Kind, List, Literal, Object, Rest, Rule, Text};

/// The JSON Schema of a document that is one `object`. Where `null_is_absent`, every field takes
/// null as well.
pub fn json_schema(object: &'static Object, null_is_absent: bool) -> Json {
    let mut writer = Writer {
        null_is_absent,
        defs: Map::new(),
    };
    let mut root = Map::new();
    root.insert(
        "$schema".into(),
        "https://json-schema.org/draft/2020-12/schema".into(),
    );
    root.extend(writer.object(object));
    if !writer.defs.is_empty() {
        root.insert("$defs".into(), Json::Object(writer.defs));
    }
    Json::Object(root)
}

struct Writer {
    null_is_absent: bool,
    defs: Map<String, Json>,
}

impl Writer {
    fn object(&mut self, object: &'static Object) -> Map<String, Json> {
        let mut out = Map::new();
        if !object.title.is_empty() {
            out.insert("title".into(), object.title.into());
        }
        if !object.doc.is_empty() {
            out.insert("description".into(), object.doc.into());
        }
        out.insert("type".into(), "object".into());
        let mut properties = Map::new();
        for field in object.fields {
            properties.insert(field.name.into(), self.field(field));
        }
        if !properties.is_empty() {
            out.insert("properties".into(), Json::Object(properties));
        }
        let required: Vec<&str> = object
            .fields
            .iter()
            .filter(|field| field.required)
            .map(|field| field.name)
            .collect();
        if !required.is_empty() {
            out.insert("required".into(), json!(required));
        }
        match object.rest {
            Rest::Refuse => {
                out.insert("additionalProperties".into(), false.into());
            }
            Rest::Each(kind) => {
                let values = self.kind(kind);
                out.insert("additionalProperties".into(), Json::Object(values));
            }
            // A warning is no reason to call a file invalid.
            Rest::Warn | Rest::Allow => {}
        }
        let rules: Vec<Json> = object.rules.iter().map(rule).collect();
        if !rules.is_empty() {
            out.insert("allOf".into(), Json::Array(rules));
        }
        out
    }

    fn field(&mut self, field: &'static Field) -> Json {
        let mut out = self.kind(&field.kind);
        if self.null_is_absent {
            allow_null(&mut out);
        }
        let description = match (field.has_effect, field.doc) {
            (true, doc) => doc.to_string(),
            (false, "") => "Known to APISIX, no effect here.".to_string(),
            (false, doc) => format!("{doc} (Known to APISIX, no effect here.)"),
        };
        if !description.is_empty() {
            out.insert("description".into(), description.into());
        }
        if let Some(default) = field.default {
            out.insert("default".into(), literal(default));
        }
        Json::Object(out)
    }

    fn kind(&mut self, kind: &'static Kind) -> Map<String, Json> {
        let written = match kind {
            Kind::Any => json!({}),
            Kind::Bool => json!({"type": "boolean"}),
            Kind::Int { min, max } => {
                let mut out = json!({"type": "integer"});
                if *min != i64::MIN {
                    out["minimum"] = (*min).into();
                }
                if *max != i64::MAX {
                    out["maximum"] = (*max).into();
                }
                out
            }
            Kind::Number { min, above, max } => {
                let mut out = json!({"type": "number"});
                let key = if *above {
                    "exclusiveMinimum"
                } else {
                    "minimum"
                };
                if min.is_finite() {
                    out[key] = number(*min);
                }
                if max.is_finite() {
                    out["maximum"] = number(*max);
                }
                out
            }
            Kind::Text(bounds) => text(bounds),
            Kind::Choice(names) => json!({"type": "string", "enum": names}),
            Kind::IntChoice(values) => json!({"type": "integer", "enum": values}),
            Kind::Object(object) | Kind::Elsewhere(object) if object.title.is_empty() => {
                return self.object(object);
            }
            Kind::Object(object) | Kind::Elsewhere(object) => {
                if !self.defs.contains_key(object.title) {
                    // Keeps the place, so that an object within itself would end.
                    self.defs.insert(object.title.into(), Json::Null);
                    let written = self.object(object);
                    self.defs.insert(object.title.into(), Json::Object(written));
                }
                json!({"$ref": format!("#/$defs/{}", object.title)})
            }
            Kind::List(list) => self.list(list),
            Kind::Either(kinds) => {
                let kinds: Vec<Json> = kinds
                    .iter()
                    .map(|kind| Json::Object(self.kind(kind)))
                    .collect();
                json!({"anyOf": kinds})
            }
        };
        match written {
            Json::Object(map) => map,
            _ => Map::new(),
        }
    }

    fn list(&mut self, list: &'static List) -> Json {
        let mut out = json!({"type": "array", "items": Json::Object(self.kind(list.items))});
        if list.min > 0 {
            out["minItems"] = list.min.into();
        }
        if list.max < usize::MAX {
            out["maxItems"] = list.max.into();
        }
        if list.unique {
            out["uniqueItems"] = true.into();
        }
        out
    }
}

fn text(bounds: &Text) -> Json {
    let mut out = json!({"type": "string"});
    if bounds.min > 0 {
        out["minLength"] = bounds.min.into();
    }
    if bounds.max < usize::MAX {
        out["maxLength"] = bounds.max.into();
    }
    if let Some(pattern) = bounds.pattern.filter(|pattern| !pattern.regex.is_empty()) {
        out["pattern"] = pattern.regex.into();
    }
    if bounds.references {
        return json!({"anyOf": [out, {"type": "string",
            "pattern": "^((\\$[eE][nN][vV]|\\$secret)://|file:///)"}]});
    }
    out
}

/// Whole numbers without a fraction, as people write them.
fn number(value: f64) -> Json {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        (value as i64).into()
    } else {
        value.into()
    }
}

fn literal(literal: Literal) -> Json {
    match literal {
        Literal::Bool(value) => value.into(),
        Literal::Int(value) => value.into(),
        Literal::Float(value) => value.into(),
        Literal::Text(text) => text.into(),
        Literal::Texts(texts) => json!(texts),
        Literal::Ints(values) => json!(values),
    }
}

fn allow_null(schema: &mut Map<String, Json>) {
    if let Some(values) = schema.get_mut("enum").and_then(Json::as_array_mut) {
        values.push(Json::Null);
    }
    if let Some(kind) = schema.get_mut("type") {
        *kind = json!([kind.clone(), "null"]);
    } else if let Some(kinds) = schema.get_mut("anyOf").and_then(Json::as_array_mut) {
        kinds.push(json!({"type": "null"}));
    } else if let Some(reference) = schema.remove("$ref") {
        schema.insert(
            "anyOf".into(),
            json!([{"$ref": reference}, {"type": "null"}]),
        );
    }
}

fn rule(rule: &Rule) -> Json {
    match rule {
        Rule::ExactlyOne(sets) => {
            let sets: Vec<Json> = sets
                .iter()
                .map(|names| json!({"required": names}))
                .collect();
            json!({"oneOf": sets})
        }
        Rule::AnyOf(names) => {
            let each: Vec<Json> = names
                .iter()
                .map(|name| json!({"required": [name]}))
                .collect();
            json!({"anyOf": each})
        }
        Rule::NotTogether(names) => json!({"not": {"required": names}}),
        Rule::Needs(first, second) => json!({"dependentRequired": {*first: [second]}}),
        Rule::Unless(field, text, inner) => json!({
            "if": {"properties": {*field: {"const": text}}, "required": [field]},
            "else": self::rule(inner),
        }),
    }
}
