use super::*;
use crate::config::document::parse_yaml;

fn env(name: &str) -> Option<String> {
    match name {
        "PORT" => Some("9100".to_string()),
        "HOST" => Some("broker.test".to_string()),
        "EMPTY" => Some(String::new()),
        "YES" => Some("true".to_string()),
        "LINES" => Some("a: 1\nb: 2".to_string()),
        "PORT " => None,
        _ => None,
    }
}

fn replaced(text: &str) -> String {
    substitute_text(text, &env).unwrap().text.into_owned()
}

fn tree(text: &str) -> serde_yaml::Value {
    let mut root = parse_yaml(text, None).unwrap().root;
    substitute_tree(&mut root, &env).unwrap();
    root.to_yaml()
}

fn yaml(text: &str) -> serde_yaml::Value {
    serde_yaml::from_str(text).unwrap()
}

#[test]
fn forms() {
    assert_eq!(replaced("a ${{PORT}} b"), "a 9100 b");
    assert_eq!(replaced("${{ PORT }}"), "9100");
    assert_eq!(replaced("${{PORT:=1}}"), "9100");
    assert_eq!(replaced("${{NONE:=1}}"), "1");
    assert_eq!(replaced("${{NONE:= 1 2 }}"), "1 2");
    assert_eq!(replaced("${{NONE:=}}"), "");
    assert_eq!(replaced("${{EMPTY:=1}}"), "");
    assert_eq!(replaced("${{HOST}}:${{PORT}}"), "broker.test:9100");
    assert_eq!(replaced("é${{PORT}}é"), "é9100é");
}

#[test]
fn what_is_no_reference_stays() {
    for text in [
        "$PORT", "${PORT}", "${{}}", "${{-x}}", "${{PORT}", "${{ }}", "{{PORT}}",
    ] {
        assert_eq!(replaced(text), text);
        assert!(substitute_text(text, &env).unwrap().map.is_none());
    }
}

#[test]
fn a_blank_before_the_default_is_part_of_the_name_and_told() {
    let done = substitute_text("a: ${{PORT := 1}}", &env).unwrap();
    assert_eq!(done.text, "a: 1");
    assert_eq!(done.warnings.len(), 1);
    assert!(
        done.warnings[0]
            .message
            .contains("the default always counts")
    );
    assert_eq!(done.warnings[0].position.to_string(), "1:4");
}

#[test]
fn every_missing_variable_is_told_with_its_place() {
    let problems = substitute_text("# é ${{A}}\nx: ${{PORT}} ${{B}}\n", &env).unwrap_err();
    let told: Vec<_> = problems
        .iter()
        .map(|problem| format!("{}: {}", problem.position, problem.message))
        .collect();
    assert_eq!(
        told,
        [
            "1:5: environment variable A is not set and has no default (write ${{A:=default}})",
            "2:14: environment variable B is not set and has no default (write ${{B:=default}})",
        ]
    );
}

#[test]
fn positions_lead_back_to_the_file() {
    let text = "first: ${{LINES}}\nport: [${{HOST}}, x]\n";
    let done = substitute_text(text, &env).unwrap();
    let map = done.map.unwrap();
    let index = |needle: &str| {
        let bytes = done.text.find(needle).unwrap();
        done.text[..bytes].chars().count()
    };
    assert_eq!(map.position(index("first")).to_string(), "1:1");
    assert_eq!(map.position(index("a: 1")).to_string(), "1:8");
    assert_eq!(map.position(index("b: 2")).to_string(), "1:8");
    assert_eq!(map.position(index("port")).to_string(), "2:1");
    assert_eq!(map.position(index("broker")).to_string(), "2:8");
    assert_eq!(map.position(index("x]")).to_string(), "2:19");
    assert_eq!(map.position(1_000_000).line, 3);
}

#[test]
fn parsed_positions_lead_back_to_the_file() {
    let text = "host: ${{HOST}}\nlist: [\"${{PORT}}\", here]\n";
    let done = substitute_text(text, &env).unwrap();
    let root = parse_yaml(&done.text, done.map.as_ref()).unwrap().root;
    let list = root.get("list").unwrap();
    assert_eq!(list.items()[0].as_str(), Some("9100"));
    assert_eq!(list.items()[1].position.to_string(), "2:21");
    let place = text.lines().nth(1).unwrap().find("here").unwrap() + 1;
    assert_eq!(list.items()[1].position.column as usize, place);
}

#[test]
fn windows_line_ends_and_comments_do_not_shift_positions() {
    let text = "# é ${{HOST}}\r\na: ${{PORT}}\r\n# more\r\nb: [x, here] # ${{PORT}}\r\nc:\r\n  - |\r\n    ${{NONE:=x}}\r\n  - last\r\n";
    let done = substitute_text(text, &env).unwrap();
    let root = parse_yaml(&done.text, done.map.as_ref()).unwrap().root;
    assert_eq!(root.get("a").unwrap().position.to_string(), "2:4");
    assert_eq!(
        root.get("b").unwrap().items()[1].position.to_string(),
        "4:8"
    );
    assert_eq!(root.entry("c").unwrap().key_position.to_string(), "5:1");
}

#[test]
fn a_carriage_return_alone_ends_a_line() {
    let text = "a: ${{PORT}}\rb: [x, here]\r\nc: ${{PORT}}\n";
    let done = substitute_text(text, &env).unwrap();
    let root = parse_yaml(&done.text, done.map.as_ref()).unwrap().root;
    let plain = parse_yaml(&done.text, None).unwrap().root;
    assert_eq!(
        root.get("b").unwrap().items()[1].position.to_string(),
        "2:8"
    );
    assert_eq!(
        root.entry("c").unwrap().key_position,
        plain.entry("c").unwrap().key_position
    );
}

#[test]
fn trees_convert_values_but_not_keys() {
    assert_eq!(
        tree("a: ${{PORT}}\nb: \"${{YES}}\"\nc: x${{PORT}}\nd: '9100'\n${{PORT}}: [\"${{HOST}}\"]"),
        yaml("{a: 9100, b: true, c: x9100, d: '9100', '9100': [broker.test]}")
    );
    assert_eq!(tree("'${{NONE:=0x1F}}'"), yaml("31"));
    assert_eq!(tree("'${{NONE:=-1.5e1}}'"), yaml("-15.0"));
    assert_eq!(tree("'${{NONE:=inf}}'"), yaml("inf"));
    assert_eq!(tree("'${{NONE:=True}}'"), yaml("'True'"));
    assert_eq!(tree("'${{NONE:=0x}}'"), yaml("0x"));
    assert_eq!(tree("'${{EMPTY}}'"), yaml("''"));
}

#[test]
fn a_renamed_key_replaces_an_earlier_one() {
    assert_eq!(tree("'9100': old\n${{PORT}}: new"), yaml("{'9100': new}"));
}

#[test]
fn missing_variables_of_a_tree() {
    let mut root = parse_yaml("a: 1\nb:\n  - ${{NONE}}\n", None).unwrap().root;
    let problems = substitute_tree(&mut root, &env).unwrap_err();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].position.to_string(), "3:5");
}

proptest::proptest! {
    #[test]
    fn never_panics_and_without_references_changes_nothing(text in "(\\$\\{\\{|\\}\\}|:=|[a-zé ${}\n])*") {
        let _ = substitute_text(&text, &env);
        if !text.contains("${{") {
            proptest::prop_assert_eq!(replaced(&text), text);
        }
    }

    /// A text cut into references and put together again is the text.
    #[test]
    fn round_trip(pieces in proptest::collection::vec("[a-zé \n:]{0,8}", 0..8)) {
        let whole = pieces.concat();
        let written: String = (0..pieces.len()).map(|n| format!("${{{{V{n}}}}}")).collect();
        let look_up = |name: &str| pieces.get(name[1..].parse::<usize>().ok()?).cloned();
        let done = substitute_text(&written, &look_up).unwrap();
        proptest::prop_assert_eq!(&done.text, &whole);
        if let Some(map) = done.map {
            for index in 0..=whole.chars().count() {
                proptest::prop_assert_eq!(map.position(index).line, 1);
                proptest::prop_assert!(map.position(index).column as usize <= written.len() + 1);
            }
        }
    }
}
