//! What kakehi has from the machine and the init system: cores, limits, addresses, signals.

pub(crate) mod cores;
pub(crate) mod init_system;
pub(crate) mod listeners;
pub(crate) mod pid_file;
pub(crate) mod resources;
pub(crate) mod signals;
