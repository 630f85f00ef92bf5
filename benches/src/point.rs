//! A point of the curve: a body of one size, one way, framed and carried one way, over so many connections.
//!
//! Points have names, so that a run can ask for any: `down_64k`, `up_1m`, `down_32k_chunked`, `tls_down_16k_x1000`, `tcp_down_16`.

use std::fmt;
use std::str::FromStr;

use crate::generator::Mode;
use crate::generator::tls::Tickets;
use crate::measure::{Case, Transport};
use crate::payload::MAX_BODY;

/// Response body of an upload (bytes).
const RECEIPT: usize = 16;
/// Connections at a time where a name says nothing.
const CONNECTIONS: usize = 64;
/// Most connections that a name may ask for: descriptors are limited.
const MOST_CONNECTIONS: usize = 6_000;

/// The sizes of the curve (bytes).
const SIZES: [usize; 11] =
    [16, 1 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 1 << 20, 16 << 20];
/// Those of its short form.
const FEW_SIZES: [usize; 6] = [16, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// How the body travels between client and proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Over {
    /// Clear text.
    Clear,
    /// TLS.
    Tls,
    /// Clear text through a listener that passes on bytes and knows no HTTP.
    Tcp,
}

impl Over {
    /// What the names of its points begin with.
    fn prefix(self) -> &'static str {
        match self {
            Self::Clear => "",
            Self::Tls => "tls_",
            Self::Tcp => "tcp_",
        }
    }
}

/// One point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// How it travels.
    pub over: Over,
    /// The body is the request's; otherwise it is the response's.
    pub upload: bool,
    /// Length of the body (bytes).
    pub size: usize,
    /// It comes in chunks; otherwise with its length.
    pub chunked: bool,
    /// Connections at a time.
    pub connections: usize,
}

impl Point {
    /// The points of the whole curve, or of its short form.
    #[must_use]
    pub fn curve(short: bool) -> Vec<Point> {
        let (sizes, widths): (&[usize], &[usize]) =
            if short { (&FEW_SIZES, &[CONNECTIONS]) } else { (&SIZES, &[1, CONNECTIONS, 1_000]) };
        let mut points = Vec::new();
        for over in [Over::Clear, Over::Tls] {
            for upload in [false, true] {
                for chunked in [false, true] {
                    for &connections in widths {
                        for &size in sizes {
                            // A thousand bodies of 16 MiB at a time measure memory, and only that.
                            let sensible = connections < 1_000 || size <= 1 << 20;
                            points.extend(sensible.then_some(Point {
                                over,
                                upload,
                                size,
                                chunked,
                                connections,
                            }));
                        }
                    }
                }
            }
        }
        points
    }

    /// What is measured there.
    #[must_use]
    pub fn case(self) -> Case {
        let Point { over, upload, size, chunked, connections } = self;
        let (body, upload) = if upload { (RECEIPT, size) } else { (size, 0) };
        let transport = match over {
            Over::Clear => Transport::Clear,
            Over::Tls => Transport::Tls(Tickets::Ignore),
            Over::Tcp => Transport::Passed,
        };
        Case::Traffic { connections, body, upload, chunked, mode: Mode::KeepAlive, transport }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Point { over, upload, size, chunked, connections } = *self;
        let over = over.prefix();
        let way = if upload { "up" } else { "down" };
        let (number, unit) = match size {
            size if size >= 1 << 20 && size.is_multiple_of(1 << 20) => (size >> 20, "m"),
            size if size >= 1 << 10 && size.is_multiple_of(1 << 10) => (size >> 10, "k"),
            size => (size, ""),
        };
        let chunked = if chunked { "_chunked" } else { "" };
        write!(f, "{over}{way}_{number}{unit}{chunked}")?;
        if connections == CONNECTIONS { Ok(()) } else { write!(f, "_x{connections}") }
    }
}

/// The name is none of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPoint;

impl FromStr for Point {
    type Err = NoPoint;

    fn from_str(name: &str) -> Result<Self, NoPoint> {
        let with = |over: Over| Some((over, name.strip_prefix(over.prefix())?));
        let (over, name) = with(Over::Tls).or_else(|| with(Over::Tcp)).unwrap_or((Over::Clear, name));
        let (way, name) = name.split_once('_').ok_or(NoPoint)?;
        let upload = match way {
            "down" => false,
            "up" => true,
            _ => return Err(NoPoint),
        };
        let (name, connections) = match name.split_once("_x") {
            Some((name, connections)) => (name, connections.parse().map_err(|_| NoPoint)?),
            None => (name, CONNECTIONS),
        };
        let (size, chunked) = name.strip_suffix("_chunked").map_or((name, false), |size| (size, true));
        let (number, shift) = match (size.strip_suffix('k'), size.strip_suffix('m')) {
            (Some(number), _) => (number, 10),
            (_, Some(number)) => (number, 20),
            _ => (size, 0),
        };
        let number: usize = number.parse().map_err(|_| NoPoint)?;
        let size = number.checked_mul(1 << shift).filter(|size| *size <= MAX_BODY).ok_or(NoPoint)?;
        if !(1..=MOST_CONNECTIONS).contains(&connections) || (upload && size == 0) {
            return Err(NoPoint);
        }
        Ok(Point { over, upload, size, chunked, connections })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_of_the_curve_is_found_by_its_name() {
        let curve = Point::curve(false);
        assert_eq!(curve.len(), 2 * 2 * 2 * (3 * SIZES.len() - 1));
        for point in curve {
            assert_eq!(point.to_string().parse(), Ok(point));
        }
        assert!(Point::curve(true).iter().all(|point| Point::curve(false).contains(point)));
    }

    #[test]
    fn sizes_between_the_points_have_names_too() {
        let point = Point { over: Over::Clear, upload: false, size: 17_000, chunked: true, connections: 7 };
        assert_eq!("down_17000_chunked_x7".parse(), Ok(point));
        assert_eq!("tcp_down_17000_chunked_x7".parse(), Ok(Point { over: Over::Tcp, ..point }));
        for wrong in
            ["", "down", "down_", "down_x", "sideways_1k", "up_0", "down_17m", "down_1k_x0", "down_1k_x9999"]
        {
            assert_eq!(wrong.parse::<Point>(), Err(NoPoint), "{wrong}");
        }
    }
}
