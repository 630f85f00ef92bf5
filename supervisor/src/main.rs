//! kakehi.
fn main() {}
