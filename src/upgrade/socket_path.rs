//! Where the two processes meet.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// The socket for upgrades of the process that runs `config`: in the runtime directory that
/// systemd gives (`RUNTIME_DIRECTORY`), else in `/run/mqtt-proxy`, else in a folder of this user
/// among the temporary ones. Named after the configuration, so that several proxies of one user
/// do not meet.
///
/// # Errors
/// When no folder can be had that is this user's alone.
pub fn of(config: &Path) -> io::Result<PathBuf> {
    let name = name_for(config)?;
    let given = std::env::var("RUNTIME_DIRECTORY").ok();
    let folder = match given.as_deref().and_then(first_of) {
        Some(folder) => folder,
        None => private(SYSTEM_FOLDER.into()).or_else(|_| private(temporary_folder()))?,
    };
    Ok(folder.join(format!("upgrade-{name}.sock")))
}

/// Device and number of a file.
pub type FileId = (u64, u64);

/// Which file has this name now.
pub fn file(path: &Path) -> Option<FileId> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// Listens at `path`, for this user alone. The socket has this name only once it listens, and takes
/// the place of one of before.
///
/// # Errors
/// When the folder cannot be written to.
pub fn listen(path: &Path) -> io::Result<(UnixListener, FileId)> {
    let fresh = path.with_extension(std::process::id().to_string());
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    let renamed = fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))
        .and_then(|()| file(&fresh).ok_or(ErrorKind::NotFound.into()))
        .and_then(|file| fs::rename(&fresh, path).map(|()| file));
    let file = renamed.inspect_err(|_| {
        let _ = fs::remove_file(&fresh);
    })?;
    Ok((listener, file))
}

/// The folder that a process of systemd has, and that of a process which root started.
const SYSTEM_FOLDER: &str = "/run/mqtt-proxy";

/// Where a process is asked for an upgrade that would hand over at this socket.
pub fn control_beside(upgrade: &Path) -> PathBuf {
    let name = upgrade.file_name().unwrap_or_default().to_string_lossy();
    upgrade.with_file_name(name.replacen("upgrade-", "control-", 1))
}

/// Where processes may be found that can be asked for an upgrade: those that run this
/// configuration, or any. `pid` is one that is looked for: it may have another runtime directory.
///
/// # Errors
/// When there is no such configuration.
pub fn controls(config: Option<&Path>, pid: Option<u32>) -> io::Result<Vec<PathBuf>> {
    let name = match config {
        Some(config) => Some(name_for(config)?),
        None => None,
    };
    let mut folders = Vec::new();
    if let Ok(own) = std::env::var("RUNTIME_DIRECTORY") {
        folders.extend(first_of(&own));
    }
    if let Some(pid) = pid {
        // Not of a process of another user; then it is in one of the usual places or not found.
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let values = environment.split(|&byte| byte == 0).filter_map(|variable| {
            let value = variable.strip_prefix(b"RUNTIME_DIRECTORY=")?;
            first_of(std::str::from_utf8(value).ok()?)
        });
        folders.extend(values);
    }
    folders.push(SYSTEM_FOLDER.into());
    // Anybody can make a folder of this name among the temporary ones.
    folders.extend(private(temporary_folder()).ok());
    let mut found: Vec<PathBuf> = Vec::new();
    for folder in folders {
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries
            .filter(|entry| {
                let own = entry.file_name();
                let own = own.to_string_lossy();
                let digest = own
                    .strip_prefix("control-")
                    .and_then(|rest| rest.strip_suffix(".sock"));
                digest.is_some_and(|digest| name.as_deref().is_none_or(|name| name == digest))
            })
            .map(|entry| entry.path())
            .collect();
        paths.retain(|path| !found.contains(path));
        paths.sort();
        found.extend(paths);
    }
    Ok(found)
}

fn first_of(folders: &str) -> Option<PathBuf> {
    let first = folders.split(':').next().filter(|first| !first.is_empty());
    first.map(PathBuf::from)
}

fn temporary_folder() -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    std::env::temp_dir().join(format!("mqtt-proxy-{user}"))
}

/// What tells the processes of this configuration from others.
fn name_for(config: &Path) -> io::Result<String> {
    let config = fs::canonicalize(config)?;
    let digest = openssl::sha::sha256(config.as_os_str().as_encoded_bytes());
    Ok(digest[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Makes sure that the folder exists and that nobody else can put anything into it.
fn private(folder: PathBuf) -> io::Result<PathBuf> {
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(&folder)?;
    let own = found.uid() == rustix::process::geteuid().as_raw();
    match found.is_dir() && own && found.mode() & 0o022 == 0 {
        true => Ok(folder),
        false => {
            let what = format!("{} is not this user's alone", folder.display());
            Err(io::Error::new(ErrorKind::PermissionDenied, what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_folder_that_others_can_write_to_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let own = private(place.path().join("own")).unwrap();
        assert_eq!(fs::metadata(&own).unwrap().mode() & 0o777, 0o700);
        assert!(private(own.clone()).is_ok(), "again");
        fs::set_permissions(&own, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(private(own).is_err());
    }

    #[test]
    fn each_configuration_has_its_own_socket() {
        let place = tempfile::tempdir().unwrap();
        let paths = ["a.yaml", "b.yaml"].map(|name| {
            let file = place.path().join(name);
            fs::write(&file, "").unwrap();
            of(&file).unwrap()
        });
        assert_ne!(paths[0], paths[1]);
        assert_eq!(paths[0], of(&place.path().join("./a.yaml")).unwrap());
    }
}
