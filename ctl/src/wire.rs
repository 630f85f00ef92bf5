//! Frames: four bytes of length (little endian, without themselves), then a JSON text.
