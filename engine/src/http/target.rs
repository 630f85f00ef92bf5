//! Request targets and authorities.
