//! Harness of the black-box tests: the real `mechad` on free ports in a folder of its own, apps that
//! only pretend, and clients that share no code with the daemon.
//!
//! - [`Sidecar`] starts the binary, waits until it is ready, keeps its log and ends it, whatever
//!   happens to the test.
//! - [`HttpApp`] and [`GrpcApp`] are the apps beside it; they answer by script and remember every call.
//! - [`Api`] says the same thing over HTTP and over gRPC, so that one case covers both fronts.
//! - [`Http`] and [`RawConnection`] are for what only one front has.
//! - [`FaultProxy`] breaks connections to a real server; [`StateLedger`] and [`EventLedger`] prove that
//!   nothing acknowledged was lost.
//!
//! Nothing here sleeps to wait for something: [`wait_until`] looks again until a deadline that only
//! a defect reaches.

#![allow(clippy::unwrap_used, reason = "a harness ends a test by panicking")]
#![allow(clippy::missing_panics_doc, reason = "a harness ends a test by panicking")]

mod api;
mod app;
mod authority;
mod binary;
mod documents;
mod grpc;
mod http;
mod ledger;
mod ports;
mod proxy;
mod raw;
mod sidecar;
mod wait;

pub use self::api::{Api, Expect, Fault, Front, Got, Item, Op};
pub use self::app::echo::{ECHO, EchoClient};
pub use self::app::grpc::{GrpcApp, GrpcAppBuilder, TopicCall};
pub use self::app::http::{Answer, Body, Call, HttpApp, HttpAppBuilder, full_body};
pub use self::authority::Authority;
pub use self::binary::{mecha, mecha_control, mechad};
pub use self::documents::{component, indent, subscription};
pub use self::grpc::{Grpc, status_details};
pub use self::http::{Http, Protocol, Reply, Request, escape};
pub use self::ledger::{
    EventLedger, EventVerdict, Findings, PublishTicket, ReadTicket, StateLedger, StateVerdict, WriteTicket,
};
pub use self::ports::free_port;
pub use self::proxy::{FaultProxy, Network, Side};
pub use self::raw::{RawConnection, RawReply};
pub use self::sidecar::{Ended, Sidecar, SidecarBuilder, Signal};
pub use self::wait::{DEADLINE, eventually, wait_until};
