//! What kakehi has from the machine and from the init system.
//!
//! | file | what it is for |
//! |---|---|
//! | [`resources`] | io_uring, locked memory, descriptors |
//! | [`cores`], [`topology`] | cores that may be used; what the host has, and which of them network cards interrupt |
//! | [`listeners`], `interface` | listening sockets, and the interface of the network that they are on |
//! | [`signals`] | signals that the supervisor obeys |
//! | [`init_system`], [`pid_file`] | what an init system sees, and passes on |
//! | [`own_file`], [`own_socket`] | files that only our own user can have written, unix sockets that only it can open |

pub(crate) mod cores;
pub(crate) mod init_system;
mod interface;
pub(crate) mod listeners;
pub(crate) mod own_file;
pub(crate) mod own_socket;
pub(crate) mod pid_file;
pub(crate) mod resources;
pub(crate) mod signals;
pub(crate) mod topology;
