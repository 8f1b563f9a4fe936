//! What people read: tables and findings as text.

pub mod escape;
pub mod history;
pub mod html;
pub mod text;
