//! `check --here`: would what the file says work on this host, for whoever asks?
//!
//! Looks at users and groups, at the folders of the files that kakehi writes, at addresses and ports, that of `[admin]` too, at cores and at io_uring.
//! Each listening address is bound for a moment, without listening. What a running kakehi with the same command socket
//! holds is its own and in nobody's way.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

use kakehi_ctl::state::{AdminAddress, Binding, Settings, State};
use nix::unistd::{AccessFlags, access, geteuid};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::{
    host::{
        cores,
        listeners::{self, Holder},
        resources,
    },
    worker_main,
};

/// What stands in the way of a start on this host.
#[derive(Default)]
pub(super) struct Findings {
    /// It would fail.
    pub(super) errors: Vec<String>,
    /// It would not be as it seems.
    pub(super) warnings: Vec<String>,
}

/// Looks at everything that `state` needs of the host.
pub(super) fn look(state: &State) -> Findings {
    let mut findings = Findings::default();
    let settings = &state.settings;
    findings.identity(state);
    findings.folders(settings);
    let running = answering(&settings.command_socket);
    state.bindings().for_each(|binding| findings.binding(binding, running));
    findings.admin(settings, running);
    findings.cores(settings);
    findings.errors.extend(resources::check_ring().err().map(|error| error.to_string()));
    findings
}

impl Findings {
    fn identity(&mut self, state: &State) {
        let Settings { user, group, .. } = &state.settings;
        let none = String::new();
        match worker_main::identity(&state.settings) {
            Err(error) => self.errors.push(error.to_string()),
            Ok(Some(_)) if !geteuid().is_root() => {
                let (key, name) = match (user, group) {
                    (Some(user), _) => ("`user`", user),
                    (None, group) => ("`group`", group.as_ref().unwrap_or(&none)),
                };
                let who = geteuid();
                self.errors.push(format!("{key}: only root can become `{name}`, and this is user {who}"));
            }
            Ok(_) => {}
        }
    }

    fn folders(&mut self, settings: &Settings) {
        let socket = &settings.command_socket;
        if fs::symlink_metadata(socket).is_ok_and(|there| !there.file_type().is_socket()) {
            self.errors.push(format!("`command_socket`: {} exists and is not a socket", socket.display()));
        }
        let files = [
            ("`command_socket`", Some(socket)),
            ("`pid_file_path`", settings.pid_file_path.as_ref()),
            ("`saved_state`", settings.saved_state.as_ref()),
        ];
        for (key, path) in files.into_iter().filter_map(|(key, path)| Some((key, path?))) {
            self.errors.extend(cannot_be_written(path).map(|reason| format!("{key}: {reason}")));
        }
    }

    fn binding(&mut self, binding: Binding, running: Option<u32>) {
        let Err(error) = listeners::try_bind(binding) else { return };
        match &error {
            listeners::Error::Taken { holder: Some(holder), .. } if is_of(holder, running) => {}
            listeners::Error::Taken { holder: Some(holder), .. } if holder.name.starts_with("kakehi-w") => {
                self.warnings.push(format!(
                    "{binding} is held by a worker of another kakehi ({holder}): a start takes it over if it has the same \
                     `command_socket`, and fails otherwise"
                ));
            }
            _ => self.errors.push(error.to_string()),
        }
    }

    fn admin(&mut self, settings: &Settings, running: Option<u32>) {
        match &settings.admin.address {
            Some(AdminAddress::Ip(address)) => {
                let is_ours = |error: &listeners::Error| matches!(error, listeners::Error::Taken { holder: Some(holder), .. } if is_of(holder, running));
                let error =
                    listeners::try_bind(Binding::from(*address)).err().filter(|error| !is_ours(error));
                self.errors.extend(error.map(|error| format!("`admin.address`: {error}")));
            }
            Some(AdminAddress::Unix(path)) => {
                let present = fs::symlink_metadata(path).ok();
                if present.as_ref().is_some_and(|there| !there.file_type().is_socket()) {
                    self.errors
                        .push(format!("`admin.address`: {} exists and is not a socket", path.display()));
                } else if let Some(pid) = answering(path).filter(|pid| Some(*pid) != running) {
                    self.errors.push(format!("`admin.address`: {} is answered by pid {pid}", path.display()));
                }
                self.errors
                    .extend(cannot_be_written(path).map(|reason| format!("`admin.address`: {reason}")));
            }
            None => {}
        }
    }

    fn cores(&mut self, settings: &Settings) {
        let allowed = cores::allowed();
        let missing = settings.worker_cores.iter().filter(|core| !allowed.contains(&usize::from(**core)));
        for core in missing {
            self.errors.push(format!("`worker_cores`: core {core} is none that this process may use"));
        }
        let count = settings.worker_count.map(usize::from).filter(|count| *count > allowed.len());
        if let Some(count) = count.filter(|_| settings.pin_workers) {
            self.warnings.push(format!(
                "`worker_count` is {count}, and this process may use {} cores: workers share them",
                allowed.len()
            ));
        }
    }
}

/// Why a file at `path` could not be put in place.
fn cannot_be_written(path: &Path) -> Option<String> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    match fs::metadata(folder) {
        Ok(there) if !there.is_dir() => return Some(format!("{} is no folder", folder.display())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Some(format!("the folder {} is missing; make it", folder.display()));
        }
        Err(error) => return Some(format!("the folder {} cannot be looked into: {error}", folder.display())),
    }
    let refused = access(folder, AccessFlags::W_OK | AccessFlags::X_OK).err()?;
    let reason = format!("nothing can be put into the folder {}: {}", folder.display(), refused.desc());
    Some(format!("{reason} (as user {})", geteuid()))
}

/// The process that answers at a unix socket, if one does.
fn answering(path: &PathBuf) -> Option<u32> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    net::connect(&socket, &SocketAddrUnix::new(path).ok()?).ok()?;
    // Of a process outside of our namespace the kernel gives the number 0, which rustix has no place for.
    let peer = nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials).ok()?;
    u32::try_from(peer.pid()).ok().filter(|pid| *pid != 0)
}

/// Whether that process is the supervisor, or one that it started.
fn is_of(holder: &Holder, supervisor: Option<u32>) -> bool {
    supervisor.is_some_and(|supervisor| holder.pid == supervisor || parent(holder.pid) == Some(supervisor))
}

fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}
