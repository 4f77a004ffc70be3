use std::os::unix::fs::MetadataExt;

use super::*;

fn moved() -> Event {
    Event::Moved {
        pid: 1,
        version: "9".to_owned(),
        connections: 2,
        milliseconds: 3,
        left: 4,
    }
}

fn control(path: &Path) -> Arc<Control> {
    let control = Arc::new(Control::at(path.to_owned()));
    control.on_upgrade(|report| report.tell(&moved()));
    control.publish();
    control
}

#[test]
fn a_process_is_found_by_its_socket_and_tells_how_the_upgrade_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let control = control(&path);
    let mode = fs::metadata(&path).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
    let running = Running::at(&path).unwrap();
    assert_eq!(running.pid, std::process::id());
    let events: Vec<Event> = running.upgrade().unwrap().map(Result::unwrap).collect();
    assert_eq!(events, [moved()]);
    control.withdraw();
    assert!(!path.exists());
    control.publish();
    assert!(!path.exists(), "it leaves");
}

#[test]
fn whoever_published_last_is_found_and_nobody_takes_away_what_is_not_his() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let old = control(&path);
    let of_old = file(&path);
    let new = control(&path);
    let of_new = file(&path);
    assert_ne!(of_old, of_new);
    old.withdraw();
    assert_eq!(file(&path), of_new);
    new.publish();
    assert_eq!(file(&path), of_new, "it is there already");
    let names = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(names, 1, "nothing is left over");
    // The old one again, because the new one died.
    let old = control(&path);
    assert_ne!(file(&path), of_new);
    assert!(Running::at(&path).unwrap().upgrade().unwrap().count() == 1);
    old.withdraw();
}

#[test]
fn what_is_no_request_is_answered_and_an_event_that_is_not_known_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let _control = control(&path);
    for request in ["{\"request\":\"dance\"}\n", "GET / HTTP/1.1\r\n"] {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let event: Event = serde_json::from_str(&answer).unwrap();
        assert!(
            matches!(&event, Event::Failed { why, .. } if why.contains("request")),
            "{event:?}"
        );
    }
    let later = r#"{"event":"halfway","percent":50}"#;
    assert_eq!(
        serde_json::from_str::<Event>(later).unwrap(),
        Event::Unknown
    );
    let later = r#"{"event":"started","pid":7,"color":"red"}"#;
    let event: Event = serde_json::from_str(later).unwrap();
    assert_eq!(event, Event::Started { pid: 7 });
}

#[test]
fn a_folder_that_cannot_be_written_to_is_no_reason_to_end() {
    let control = Arc::new(Control::at("/proc/nowhere/control.sock".into()));
    control.publish();
    control.withdraw();
}

#[test]
fn sockets_of_processes_that_were_killed_are_swept_away() {
    let folder = tempfile::tempdir().unwrap();
    let [dead, alive, other] =
        ["control-a.sock", "control-b.sock", "upgrade-a.sock"].map(|name| folder.path().join(name));
    drop(UnixListener::bind(&dead).unwrap());
    drop(UnixListener::bind(&other).unwrap());
    let _alive = control(&alive);
    let own = folder.path().join("control-c.sock");
    control(&own).sweep();
    assert!(!dead.exists() && alive.exists() && own.exists() && other.exists());
}
