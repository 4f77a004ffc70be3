//! What must hold for the replacement of variables whatever the text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mqtt_proxy::config::substitute::substitute_text;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    // Lines as YAML has them.
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let text = text.as_str();
    let lines = text.split('\n').count();

    // Every variable is itself: the text shrinks to names and defaults.
    let known = |name: &str| Some(name.to_string());
    let done = substitute_text(text, &known).expect("every variable exists");
    if !text.contains("${{") {
        assert_eq!(done.text, text);
    }
    match done.map {
        None => assert_eq!(done.text, text),
        Some(map) => {
            let mut last = map.position(0);
            for index in 0..=done.text.chars().count() {
                let position = map.position(index);
                assert!(position >= last, "positions go backwards");
                assert!(position.line as usize <= lines);
                last = position;
            }
        }
    }

    // No variable exists: either all have defaults, or each without one is told in its place.
    if let Err(missing) = substitute_text(text, &|_| None) {
        assert!(!missing.is_empty());
        for problem in missing {
            let line = text
                .split('\n')
                .nth(problem.position.line as usize - 1)
                .expect("the line exists");
            let rest: String = line
                .chars()
                .skip(problem.position.column as usize - 1)
                .collect();
            assert!(rest.starts_with("${{"), "{problem:?}");
        }
    }
});
