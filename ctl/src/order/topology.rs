//! The cores of the host, and where the workers are.

use serde::{Deserialize, Serialize};

use super::WorkerInfo;

/// What cores the host has, and where the workers are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Topology {
    /// Those that are online.
    pub cores: Vec<Core>,
    /// Interfaces of the network whose card has interrupts of its own.
    pub interfaces: Vec<Interface>,
    /// Each worker.
    pub workers: Vec<WorkerInfo>,
}

/// A core, in the words of Linux a CPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Core {
    /// Its number.
    pub id: u32,
    /// Whether kakehi may use it (affinity mask, cpuset).
    pub allowed: bool,
    /// Those that share its physical core, itself included.
    pub siblings: Vec<u32>,
    /// Its NUMA node.
    pub node: u32,
    /// It serves interrupts of a network card.
    pub serves_interrupts: bool,
}

/// An interface of the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its NUMA node, if that is known.
    pub node: Option<u32>,
    /// The cores that serve its interrupts.
    pub cores: Vec<u32>,
}
