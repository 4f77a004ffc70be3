use super::*;

fn parse(text: &str) -> Parsed {
    parse_yaml(text, None).unwrap()
}

fn error(text: &str) -> String {
    parse_yaml(text, None).unwrap_err().to_string()
}

fn yaml(text: &str) -> serde_yaml::Value {
    serde_yaml::from_str(text).unwrap()
}

#[test]
fn values_and_positions() {
    let root = parse("a: 1\nlist:\n  - x\n  - é: [1, 2]\nlast: \"no\"\n").root;
    assert_eq!(root.position.to_string(), "1:1");
    let list = root.entry("list").unwrap();
    assert_eq!(list.key_position.to_string(), "2:1");
    assert_eq!(list.value.position.to_string(), "3:3");
    let inner = list.value.items()[1].entry("é").unwrap();
    assert_eq!(inner.key_position.to_string(), "4:5");
    assert_eq!(inner.value.items()[1].position.to_string(), "4:12");
    assert_eq!(
        root.to_yaml(),
        yaml("{a: 1, list: [x, {é: [1, 2]}], last: 'no'}")
    );
}

#[test]
fn windows_line_ends_count_once() {
    let root = parse("a: 1\r\nb: x\r\n").root;
    assert_eq!(root.get("b").unwrap().position.to_string(), "2:4");
    assert_eq!(root.get("b").unwrap().as_str(), Some("x"));
}

#[test]
fn quoted_scalars_are_strings_and_tags_count() {
    assert_eq!(
        parse("[\"1\", '1', !!str 1, !!int \"1\", ! 1, !other 1]")
            .root
            .to_yaml(),
        yaml("['1', '1', '1', 1, '1', 1]")
    );
    assert_eq!(parse("a: |-\n  1\n").root.to_yaml(), yaml("{a: '1'}"));
}

#[test]
fn keys_are_texts_as_written() {
    let root = parse("1883: a\nyes: b\n0x10: c\n\"q\": d\n~: e\n").root;
    let keys: Vec<_> = root.entries().iter().map(|e| e.key.as_str()).collect();
    assert_eq!(keys, ["1883", "yes", "0x10", "q", "~"]);
}

#[test]
fn aliases_and_merge_keys() {
    let text = "base: &b {x: 1, y: 2}\nother: &o {y: 3, z: 4}\ncopy: *b\n\
                merged: {<<: *b, y: 9}\nboth: {<<: [*b, *o]}\nquoted: {\"<<\": 1}\n";
    assert_eq!(
        parse(text).root.to_yaml(),
        yaml(
            "{base: {x: 1, y: 2}, other: {y: 3, z: 4}, copy: {x: 1, y: 2}, merged: {y: 9, x: 1}, \
             both: {x: 1, y: 2, z: 4}, quoted: {'<<': 1}}"
        )
    );
    let root = parse(text).root;
    assert_eq!(
        root.get("copy").unwrap().position,
        root.get("base").unwrap().position
    );
    assert_eq!(
        parse("? &k a\n: 1\n*k : 2\n").root.to_yaml(),
        yaml("{a: 2}")
    );
}

#[test]
fn wrong_merges_and_aliases_are_errors() {
    assert!(error("a: {<<: 1}").contains("the merge key << needs a mapping"));
    assert!(error("a: {<<: [1]}").contains("needs mappings"));
    assert!(error("a: &a [*a]").contains("inside the value it names"));
    assert!(error("a: *nobody").starts_with("1:"));
    assert!(error("? [1]\n: 2").contains("key of a mapping"));
}

#[test]
fn duplicates_are_told_and_the_last_one_wins() {
    let parsed = parse("a:\n  - b: 1\n    c: {x: 1, x: 2}\n    b: 3\n");
    assert_eq!(parsed.root.to_yaml(), yaml("{a: [{c: {x: 2}, b: 3}]}"));
    let told: Vec<_> = parsed
        .duplicates
        .iter()
        .map(|d| format!("{} {}", d.position, d.path))
        .collect();
    assert_eq!(told, ["3:9 a[0].c.x", "2:5 a[0].b"]);
}

#[test]
fn only_the_first_document_counts() {
    let parsed = parse("a: 1\n---\nb: 2\n");
    assert_eq!(parsed.root.to_yaml(), yaml("{a: 1}"));
    assert_eq!(parsed.second_document.unwrap().line, 2);
    assert_eq!(parse("---\na: 1\n").second_document, None);
}

#[test]
fn nothing_is_null() {
    for text in ["", "# only a comment\n#END\n", "---\n", "~"] {
        assert!(parse(text).root.is_null(), "{text:?}");
    }
}

#[test]
fn syntax_errors_have_a_place() {
    for (text, line) in [
        ("a: [1, 2\nb: 3\n", 2),
        ("a: \"open\n", 1),
        ("a: 1\n b: 2\n", 2),
        ("a:\n\t- 1\n", 2),
        ("%nonsense\n", 1),
    ] {
        let error = parse_yaml(text, None).unwrap_err();
        assert!(error.position.line >= line, "{text:?}: {error}");
        assert!(!error.message.is_empty());
    }
}

#[test]
fn depth_and_size_are_bounded() {
    let deep = format!("{}{}", "[".repeat(64), "]".repeat(64));
    assert!(parse_yaml(&deep, None).is_ok());
    let deeper = format!("{}{}", "[".repeat(65), "]".repeat(65));
    assert_eq!(error(&deeper), "1:65: nested more than 64 levels deep");
    // The parser has a bound of its own.
    assert!(parse_yaml(&"[".repeat(200_000), None).is_err());
    assert!(parse_yaml(&"{a: ".repeat(100_000), None).is_err());
    // Depth through aliases.
    let half = format!("a: &a {}{}\nb: ", "[".repeat(40), "]".repeat(40));
    let whole = format!("{half}{}*a{}\n", "[".repeat(40), "]".repeat(40));
    assert!(error(&whole).contains("64 levels"));
    // "A billion laughs".
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_string();
    for n in 1..10 {
        let list = format!("*a{}, ", n - 1).repeat(10);
        bomb.push_str(&format!("a{n}: &a{n} [{list}]\n"));
    }
    assert!(error(&bomb).contains("more than 4000000 values"));
    // A long text many times.
    let text = format!(
        "a: &a \"{}\"\nb: [{}]\n",
        "x".repeat(1_000_000),
        "*a, ".repeat(1000)
    );
    assert!(error(&text).contains("more than 4000000 values"));
}

mod random {
    use super::*;
    use proptest::prelude::*;

    /// Texts that are texts in YAML 1.1 too: serde_yaml writes YAML 1.2 and leaves out quotes that
    /// `yes` and `1:30` would need, and `<<` as a key.
    fn text() -> impl Strategy<Value = String> {
        "[ -~é\n]{0,12}".prop_filter("typed by YAML 1.1", |text| {
            text.is_empty() || (text != "<<" && matches!(scalar::plain(text), Value::String(_)))
        })
    }

    fn value() -> impl Strategy<Value = serde_yaml::Value> {
        let leaf = prop_oneof![
            Just(serde_yaml::Value::Null),
            any::<bool>().prop_map(Into::into),
            (-1_000_000_000_000i64..1_000_000_000_000).prop_map(Into::into),
            (-1e6f64..1e6).prop_map(Into::into),
            text().prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(serde_yaml::Value::Sequence),
                prop::collection::vec((text(), inner), 0..5).prop_map(|pairs| {
                    serde_yaml::Value::Mapping(
                        pairs
                            .into_iter()
                            .map(|(key, value)| (key.into(), value))
                            .collect(),
                    )
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn never_panics(text in "(?s).{0,200}") {
            let _ = parse_yaml(&text, None);
        }

        #[test]
        fn never_panics_on_what_looks_like_yaml(
            text in "([\\[\\]{},:?&*!|>'\"%@`#<~-]|[a-z0-9]| |\n|\t|\\*a|&a|<<: |- |: ){0,60}"
        ) {
            let _ = parse_yaml(&text, None);
        }

        #[test]
        fn what_serde_yaml_writes_reads_back(value in value()) {
            let text = serde_yaml::to_string(&value).unwrap();
            prop_assert_eq!(parse_yaml(&text, None).unwrap().root.to_yaml(), value, "{}", text);
        }
    }
}
