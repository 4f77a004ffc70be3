//! Every example under conf/ loads without an error or a warning, and fits the published schemas.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use support::cli;

fn conf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conf")
}

/// Every folder below `dir` (itself included) that has a `config.yaml`.
fn examples(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if dir.join("config.yaml").exists() {
        found.push(dir.to_owned());
    }
    for entry in fs::read_dir(dir).expect("a folder").flatten() {
        if entry.path().is_dir() {
            found.extend(examples(&entry.path()));
        }
    }
    found.sort();
    found
}

#[test]
fn every_example_passes_the_strict_check() {
    let examples = examples(&conf());
    assert!(examples.contains(&conf()), "conf/config.yaml itself is one");
    assert!(
        examples.len() > 3,
        "one example for each feature: {examples:?}"
    );
    for example in examples {
        let config = example.join("config.yaml");
        let ran = cli(&[
            "check".as_ref(),
            "--strict".as_ref(),
            "-c".as_ref(),
            config.as_os_str(),
        ]);
        assert_eq!(ran.code, 0, "{}: {}", config.display(), ran.all());
    }
}

#[test]
fn every_example_fits_the_published_schemas() {
    let schema = |what: &str| {
        let ran = cli(&["schema", what]);
        let schema: Value = serde_json::from_str(&ran.stdout).expect("JSON");
        jsonschema::validator_for(&schema).expect("a schema")
    };
    let [settings, resources] = ["config", "apisix"].map(schema);
    for example in examples(&conf()) {
        for (name, schema) in [
            ("config.yaml", &settings),
            ("apisix.yaml", &resources),
            ("apisix.json", &resources),
        ] {
            let Ok(text) = fs::read_to_string(example.join(name)) else {
                continue;
            };
            if text.contains("${{") {
                continue;
            }
            let value: Value = serde_yaml::from_str(&text).expect("YAML");
            let problems: Vec<String> = schema
                .iter_errors(&value)
                .map(|e| format!("{}: {e}", e.instance_path()))
                .collect();
            assert!(
                problems.is_empty(),
                "{}/{name}: {problems:#?}",
                example.display()
            );
        }
    }
}

#[test]
fn every_example_of_apisix_yaml_ends_with_the_end_mark() {
    for example in examples(&conf()) {
        let Ok(text) = fs::read_to_string(example.join("apisix.yaml")) else {
            continue;
        };
        assert!(text.trim_end().ends_with("#END"), "{}", example.display());
    }
}
