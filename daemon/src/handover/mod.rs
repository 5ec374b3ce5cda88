//! The hand-over of listening sockets from a running daemon to its successor.
//!
//! A daemon started with `--mecha-handover PATH` listens at PATH, a unix socket of mode 0600 that
//! answers processes of the same user only. Its successor, started with `--mecha-takeover` besides,
//! gets duplicates of all listening sockets there, builds everything, accepts, and only then asks
//! the old daemon to leave. Both share the kernel's queues of connections, so none is refused and
//! none is lost; until it leaves, the old one serves as if nothing had been asked.
//!
//! ```text
//! successor → daemon   hello    who it is
//! daemon → successor   offer    its sockets, as SCM_RIGHTS        (or: refused)
//! successor → daemon   serving  it accepts now
//! daemon → successor   leaving  it accepts no more                (or: refused)
//! daemon → successor   settled  its subscriptions and input bindings are at rest
//! ```
//!
//! Each message is one line of JSON. A connection that ends before `leaving` changes nothing.

mod door;
#[doc(hidden)]
pub mod fuzzing;
mod successor;
mod wire;

pub use self::door::{Departure, Door, House};
pub use self::successor::{Predecessor, TakeoverError, take_over};
pub use self::wire::{Inherited, Role};
