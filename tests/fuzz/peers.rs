//! What other sidecars send: messages of the peer protocol, and multicast packets.

use bytes::Bytes;
use mecha_core::invoke::Method;
use mechad::fuzzing::peer;

use crate::engine::{Checked, Target};

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "peer-request",
        words: &["\u{12}\u{4}", "\u{1a}\u{2}", "\n\u{1}", "\u{8}", "orders", "\u{22}"],
        check: request,
    },
    Target { name: "peer-response", words: &["\n\u{2}\u{8}", "\u{12}\u{4}", "\u{22}\u{4}", "\u{1a}"], check: response },
    Target { name: "peer-stream", words: &["\0\0\0\0", "\0\0\0\0\u{5}", "\u{12}", "\u{1}"], check: stream },
    Target {
        name: "mdns-packet",
        words: &["\u{c0}\u{c}", "\0\u{21}", "\0\u{1}", "\u{3}app", "\u{5}local\0"],
        check: packet,
    },
];

/// Longest message of these tests.
const LIMIT: usize = 1 << 16;

fn request(bytes: &[u8]) -> Checked {
    let Some((head, data)) = peer::request(Bytes::copy_from_slice(bytes)) else { return Ok(false) };
    if Method::new(head.method.as_str()).as_ref() != Ok(&head.method) {
        return Err(format!("the method {:?} changes when it is read again", head.method));
    }
    let written = peer::written(&head, &data);
    let Some((again, same)) = peer::request(written) else {
        return Err("a request that was read and written again cannot be read".to_owned());
    };
    if same != data || again.method != head.method || again.query != head.query || again.verb != head.verb {
        return Err("a request changes on its way through a sidecar".to_owned());
    }
    Ok(true)
}

fn response(bytes: &[u8]) -> Checked {
    let bytes = Bytes::copy_from_slice(bytes);
    let _ = peer::status(bytes.clone());
    Ok(peer::response(bytes).is_some())
}

/// However the bytes are cut, the messages are the same.
fn stream(bytes: &[u8]) -> Checked {
    let whole = [Bytes::copy_from_slice(bytes)];
    let single: Vec<Bytes> = bytes.iter().map(|b| Bytes::copy_from_slice(&[*b])).collect();
    let odd: Vec<Bytes> = bytes.chunks(7).map(Bytes::copy_from_slice).collect();
    let messages = peer::messages(&whole, LIMIT);
    for cut in [&single, &odd] {
        if peer::messages(cut, LIMIT) != messages {
            return Err("where the bytes are cut decides what they say".to_owned());
        }
    }
    for message in messages.iter().flatten() {
        let _ = peer::part(message.clone());
    }
    Ok(messages.is_some_and(|m| !m.is_empty()))
}

fn packet(bytes: &[u8]) -> Checked {
    let Some(found) = mecha_mdns::fuzzing::packet(bytes) else { return Ok(false) };
    for (app_id, instance) in found {
        if !instance.ends_with(&format!(".{}.local", app_id.to_ascii_lowercase()))
            && !instance.ends_with(&format!(".{}.local.", app_id.to_ascii_lowercase()))
        {
            return Err(format!("{instance:?} speaks for {app_id:?}"));
        }
    }
    Ok(true)
}
