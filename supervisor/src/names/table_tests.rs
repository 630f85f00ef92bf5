//! Names over time.
