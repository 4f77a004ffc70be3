use super::*;

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

fn is_current(keys: &TicketKeys, name: u8) -> bool {
    matches!(keys.to_decrypt(&[name; 16]), Found::Current(_))
}

fn is_older(keys: &TicketKeys, name: u8) -> bool {
    matches!(keys.to_decrypt(&[name; 16]), Found::Older(_))
}

#[test]
fn the_first_key_of_a_file_encrypts_and_all_decrypt() {
    let file = file(&[[1; KEY_LENGTH], [2; KEY_LENGTH]].concat());
    let keys = TicketKeys::from_file(file.path()).unwrap();
    assert_eq!(keys.to_encrypt().name, [1; 16]);
    assert!(is_current(&keys, 1) && is_older(&keys, 2));
    assert!(matches!(keys.to_decrypt(&[3; 16]), Found::Unknown));
    std::fs::write(file.path(), [[3; KEY_LENGTH], [1; KEY_LENGTH]].concat()).unwrap();
    keys.reread(file.path()).unwrap();
    assert!(is_current(&keys, 3) && is_older(&keys, 1));
    // Keys of a file do not rotate by themselves.
    keys.rotate_at(Instant::now() + 10 * ROTATION);
    assert!(is_current(&keys, 3));
}

#[test]
fn a_file_of_another_size_is_refused_and_changes_nothing() {
    let good = file(&[7; KEY_LENGTH]);
    let keys = TicketKeys::from_file(good.path()).unwrap();
    for size in [0, 48, 79, 81, 17 * KEY_LENGTH] {
        let bad = file(&vec![7; size]);
        let error = keys.reread(bad.path()).unwrap_err();
        assert!(matches!(error, KeyFileError::Size(_)), "{size}");
    }
    assert!(is_current(&keys, 7));
    assert!(matches!(
        keys.reread(Path::new("none")),
        Err(KeyFileError::Read(_))
    ));
}

#[test]
fn random_keys_rotate_and_stay_usable_for_two_periods() {
    let keys = TicketKeys::random().unwrap();
    let begun = Instant::now();
    let first = keys.to_encrypt();
    let mut names = vec![first.name];
    for hour in 1..4_u32 {
        keys.rotate_at(begun + ROTATION * hour + Duration::from_secs(1));
        names.push(keys.keys.load()[0].name);
    }
    let known = |name| !matches!(keys.to_decrypt(name), Found::Unknown);
    assert!(!known(&names[0]), "three periods old");
    assert!(names[1..].iter().all(known));
    // After a long pause no ticket of the old keys can be alive.
    keys.rotate_at(begun + ROTATION * 100);
    assert_eq!(keys.keys.load().len(), 1);
}

#[test]
fn keys_are_never_printed() {
    let file = file(&[0x41; KEY_LENGTH]);
    let shown = format!("{:?}", TicketKeys::from_file(file.path()).unwrap());
    assert!(shown.contains("hidden") && !shown.contains("65"), "{shown}");
}

/// The keys as a process that takes over has them.
fn handed_over(keys: &TicketKeys) -> TicketKeys {
    let exported = serde_json::to_vec(&keys.export().unwrap()).unwrap();
    let new = TicketKeys::random().unwrap();
    new.import(&serde_json::from_slice(&exported).unwrap())
        .unwrap();
    new
}

#[test]
fn random_keys_are_handed_over_with_their_age() {
    let keys = TicketKeys::random().unwrap();
    let begun = Instant::now();
    let first = keys.to_encrypt();
    keys.rotate_at(begun + ROTATION + Duration::from_secs(1));
    let second = keys.to_encrypt();
    // As if the second had encrypted for most of its time.
    let almost = ROTATION.checked_sub(Duration::from_secs(60)).unwrap();
    *keys.since.lock().unwrap() = Instant::now().checked_sub(almost);
    let new = handed_over(&keys);
    assert_eq!(new.to_encrypt().name, second.name);
    assert_eq!(
        (new.to_encrypt().aes, new.to_encrypt().hmac),
        (second.aes, second.hmac)
    );
    assert!(matches!(new.to_decrypt(&first.name), Found::Older(key) if key.aes == first.aes));
    // What is left of its time goes on in the new process, and in the one after that.
    let last = handed_over(&new);
    last.rotate_at(Instant::now() + Duration::from_secs(30));
    assert_eq!(last.keys.load()[0].name, second.name);
    last.rotate_at(Instant::now() + Duration::from_secs(90));
    assert_ne!(last.keys.load()[0].name, second.name);
    assert!(matches!(last.to_decrypt(&second.name), Found::Older(_)));
}

#[test]
fn keys_of_a_file_stay_with_their_file() {
    let file = file(&[7; KEY_LENGTH]);
    let keys = TicketKeys::from_file(file.path()).unwrap();
    assert!(keys.export().is_none());
    let random = TicketKeys::random().unwrap();
    keys.import(&random.export().unwrap()).unwrap();
    assert!(is_current(&keys, 7));
}

#[test]
fn what_is_no_export_changes_nothing() {
    let keys = TicketKeys::random().unwrap();
    let before = keys.to_encrypt().name;
    let good = keys.export().unwrap().0.clone();
    let cut = |length: usize| good[..length].to_vec();
    let mut other_form = good.clone();
    other_form[0] = 2;
    let many = [&good[..EXPORT_HEADER], &vec![1; 17 * KEY_LENGTH]].concat();
    let longer = [&good[..], b"x"].concat();
    let none = cut(EXPORT_HEADER);
    for bad in [
        Vec::new(),
        cut(1),
        cut(5),
        none,
        cut(good.len() - 1),
        longer,
        many,
        other_form,
    ] {
        let exported = ExportedKeys(bad);
        assert_eq!(keys.import(&exported), Err(ImportError), "{:?}", exported.0);
    }
    assert_eq!(keys.to_encrypt().name, before);
    // An age that cannot be: the key is replaced at once, and still decrypts.
    let mut ancient = good;
    ancient[1..EXPORT_HEADER].fill(0xff);
    keys.import(&ExportedKeys(ancient)).unwrap();
    assert_ne!(keys.to_encrypt().name, before);
    assert!(matches!(keys.to_decrypt(&before), Found::Older(_)));
    let shown = format!("{:?}", keys.export());
    assert_eq!(shown, "Some(ExportedKeys(hidden))");
}
