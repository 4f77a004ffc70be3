//! Where the two processes meet.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The socket for upgrades of the process that runs `config`: in the runtime directory that
/// systemd gives (`RUNTIME_DIRECTORY`), else in `/run/mqtt-proxy`, else in a folder of this user
/// among the temporary ones. Named after the configuration, so that several proxies of one user
/// do not meet.
///
/// # Errors
/// When no folder can be had that is this user's alone.
pub fn of(config: &Path) -> io::Result<PathBuf> {
    let config = fs::canonicalize(config)?;
    let digest = openssl::sha::sha256(config.as_os_str().as_encoded_bytes());
    let name: String = digest[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let folder = match std::env::var("RUNTIME_DIRECTORY") {
        Ok(folders) if !folders.is_empty() => {
            PathBuf::from(folders.split(':').next().unwrap_or_default())
        }
        _ => {
            let user = rustix::process::geteuid().as_raw();
            let own = std::env::temp_dir().join(format!("mqtt-proxy-{user}"));
            private(PathBuf::from("/run/mqtt-proxy")).or_else(|_| private(own))?
        }
    };
    Ok(folder.join(format!("upgrade-{name}.sock")))
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
