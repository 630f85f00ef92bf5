//! What a supervisor was writing when it was killed: it lies beside the file that it was to become, and nobody would ever remove it.

use std::path::Path;

use kakehi_ctl::{state::Settings, store};

use crate::{
    estate::{names_record, record::StateRecord},
    fleet::{adoption_file, socket_record},
};

/// Removes what is left of files that are written whole or not at all: the saved state, the pid file, records.
pub(super) fn clear(settings: &Settings) {
    let socket = &settings.command_socket;
    let (record, sockets) = (StateRecord::path(socket), socket_record::path(socket));
    let names = names_record::path(socket);
    store::clear_leftovers(folder_of(socket), |name| {
        [&record, &sockets, &names].into_iter().any(|it| is_name_of(it, name))
            || adoption_file::is_record(socket, name)
    });
    for path in [&settings.saved_state, &settings.pid_file_path].into_iter().flatten() {
        store::clear_leftovers(folder_of(path), |name| is_name_of(path, name));
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn is_name_of(path: &Path, name: &[u8]) -> bool {
    path.file_name().is_some_and(|it| it.as_encoded_bytes() == name)
}
