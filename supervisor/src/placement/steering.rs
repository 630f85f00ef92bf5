//! Which of the listening sockets of an address gets a new connection.
//!
//! By itself the kernel spreads connections over all sockets of the group by a hash. A classic BPF program on the group
//! (`SO_ATTACH_REUSEPORT_CBPF`) answers with the place of a socket instead. It is needed in two cases: some worker has
//! sockets of one that was removed, and would get more than its share; or connections shall go to the worker on the core
//! that received them. Places are counted in the order in which the sockets began to listen; where that is not certain
//! any more, as a socket between was closed, no program is attached.

use std::{collections::BTreeMap, os::fd::OwnedFd};

use kakehi_ctl::state::{Binding, Steering};
use libc::sock_filter;

use crate::{fleet::worker::Worker, supervisor::Supervisor, sys};

/// How a new connection finds its socket.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Plan {
    /// As the kernel does by itself.
    Hash,
    /// One of the first so many, by chance.
    First(u32),
    /// On this core to that place; elsewhere one of the first so many.
    Cpu(Vec<(u32, u32)>, u32),
}

impl Supervisor {
    /// Brings the groups of all addresses in line with the workers.
    pub(crate) fn steer(&self) {
        let mut groups: BTreeMap<Binding, Vec<(u32, u32, &OwnedFd)>> = BTreeMap::new();
        for worker in self.workers.iter().filter(|worker| !worker.is_retired()) {
            for (which, socket) in worker.sockets() {
                groups.entry(which.binding()).or_default().push((which.rank, worker.id(), socket));
            }
        }
        for (binding, mut sockets) in groups {
            sockets.sort_by_key(|(rank, ..)| *rank);
            let places: Vec<(u32, u32)> = sockets.iter().map(|(rank, id, _)| (*rank, *id)).collect();
            let plan = plan(&places, self.count() as u32, self.state.settings.steering, |id| {
                self.workers.get(id as usize).and_then(Worker::core)
            });
            let Some((_, _, socket)) = sockets.first() else { continue };
            let done = match &plan {
                Plan::Hash => sys::detach_reuseport_filter(socket),
                steered => sys::attach_reuseport_filter(socket, &program(steered)),
            };
            if let Err(error) = done {
                tracing::warn!("new connections to {binding} cannot be steered: {error}");
            }
        }
    }
}

/// `sockets` are those of a group, by rank, with the worker that each belongs to.
fn plan(
    sockets: &[(u32, u32)],
    workers: u32,
    steering: Steering,
    core_of: impl Fn(u32) -> Option<u32>,
) -> Plan {
    let in_order = sockets.iter().enumerate().all(|(place, (rank, _))| place as u32 == *rank);
    let own_first =
        sockets.iter().take(workers as usize).enumerate().all(|(place, (_, id))| place as u32 == *id);
    if !in_order || !own_first || (sockets.len() as u32) < workers {
        return Plan::Hash;
    }
    let cores: Vec<(u32, u32)> = match steering {
        Steering::Cpu => (0..workers).filter_map(|id| Some((core_of(id)?, id))).collect(),
        Steering::Hash => Vec::new(),
    };
    if !cores.is_empty() {
        Plan::Cpu(cores, workers)
    } else if sockets.len() as u32 > workers {
        Plan::First(workers)
    } else {
        Plan::Hash
    }
}

/// The plan as a classic BPF program, which returns a place in the group.
fn program(plan: &Plan) -> Vec<sock_filter> {
    let load =
        |what: i32| instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (libc::SKF_AD_OFF + what) as u32);
    let answer = |place| instruction(libc::BPF_RET | libc::BPF_K, place);
    let mut program = Vec::new();
    let (cores, workers) = match plan {
        Plan::Hash => return vec![answer(u32::MAX)],
        Plan::First(workers) => (&[][..], *workers),
        Plan::Cpu(cores, workers) => (&cores[..], *workers),
    };
    if !cores.is_empty() {
        program.push(load(libc::SKF_AD_CPU));
    }
    for (core, place) in cores {
        // Equal: go on with the next, which answers; otherwise leave it out.
        let equal = instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, *core);
        program.extend([sock_filter { jf: 1, ..equal }, answer(*place)]);
    }
    program.push(load(libc::SKF_AD_RANDOM));
    program.push(instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, workers.max(1)));
    program.push(instruction(libc::BPF_RET | libc::BPF_A, 0));
    program
}

fn instruction(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn sockets_of_workers_that_went_get_no_new_connections() {
        let none = |_| None;
        assert_eq!(plan(&[(0, 0), (1, 1)], 2, Steering::Hash, none), Plan::Hash);
        assert_eq!(plan(&[(0, 0), (1, 1), (2, 0)], 2, Steering::Hash, none), Plan::First(2));
        assert_eq!(plan(&[(0, 0), (1, 0), (2, 0)], 1, Steering::Hash, none), Plan::First(1));
    }

    #[test]
    fn where_places_are_not_certain_the_kernel_decides() {
        assert_eq!(plan(&[(0, 0), (2, 1), (3, 0)], 2, Steering::Hash, |_| None), Plan::Hash);
        assert_eq!(plan(&[(0, 1), (1, 0), (2, 0)], 2, Steering::Cpu, Some), Plan::Hash);
        assert_eq!(plan(&[(0, 0)], 2, Steering::Cpu, Some), Plan::Hash);
    }

    #[test]
    fn a_core_leads_to_its_worker() {
        let cores = |id| Some(7 - id);
        assert_eq!(plan(&[(0, 0), (1, 1)], 2, Steering::Cpu, cores), Plan::Cpu(vec![(7, 0), (6, 1)], 2));
        // Workers that are not pinned have no core.
        assert_eq!(plan(&[(0, 0), (1, 1)], 2, Steering::Cpu, |_| None), Plan::Hash);
        assert_eq!(program(&Plan::Cpu(vec![(7, 0), (6, 1)], 2)).len(), 1 + 4 + 3);
    }

    #[test]
    fn the_kernel_takes_the_programs() {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(1).unwrap();
        let socket = OwnedFd::from(socket);
        for plan in [Plan::First(2), Plan::Cpu(vec![(0, 0), (1, 1)], 2)] {
            sys::attach_reuseport_filter(&socket, &program(&plan)).unwrap();
        }
        sys::detach_reuseport_filter(&socket).unwrap();
        sys::detach_reuseport_filter(&socket).unwrap();
    }
}
