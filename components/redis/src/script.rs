//! Scripts that run on the server, sent by their hash.

use std::sync::LazyLock;

use redis::{Cmd, RedisResult, Value};

use crate::client::{Client, Op};
use crate::error::{Fault, is};

/// A script and its hash.
pub(crate) struct Script {
    text: &'static str,
    hash: LazyLock<String>,
}

/// A call of a script: its keys, then its arguments.
pub(crate) struct Run<'a> {
    script: &'a Script,
    keys: Vec<&'a [u8]>,
    args: Vec<&'a [u8]>,
}

impl Script {
    pub(crate) const fn new(text: &'static str, hash: fn() -> String) -> Self {
        Self { text, hash: LazyLock::new(hash) }
    }

    pub(crate) fn run(&self) -> Run<'_> {
        Run { script: self, keys: Vec::new(), args: Vec::new() }
    }
}

/// A static script.
macro_rules! script {
    ($text:expr) => {
        $crate::script::Script::new($text, || redis::Script::new($text).get_hash().to_owned())
    };
}
pub(crate) use script;

impl<'a> Run<'a> {
    pub(crate) fn key(mut self, key: &'a str) -> Self {
        self.keys.push(key.as_bytes());
        self
    }

    pub(crate) fn arg(mut self, arg: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        self.args.push(arg.as_ref());
        self
    }

    /// The command; `full` carries the text, for a server that does not know the hash.
    pub(crate) fn command(&self, full: bool) -> Cmd {
        let (name, script) = if full { ("EVAL", self.script.text) } else { ("EVALSHA", self.script.hash.as_str()) };
        let size = self.keys.iter().chain(&self.args).map(|a| a.len()).sum::<usize>() + script.len() + 16;
        let mut cmd = Cmd::with_capacity(3 + self.keys.len() + self.args.len(), size);
        cmd.arg(name).arg(script).arg(self.keys.len());
        for arg in self.keys.iter().chain(&self.args) {
            cmd.arg(*arg);
        }
        cmd
    }

    /// Runs it. A script that the server does not know did nothing, so it is sent again in full.
    pub(crate) async fn on(&self, client: &Client, op: Op) -> Result<Value, Fault> {
        match client.try_call(op, &self.command(false)).await {
            Err(Fault::Sent(e)) if is(&e, "NOSCRIPT") => client.try_call(op, &self.command(true)).await,
            outcome => outcome,
        }
    }
}

/// Whether an outcome says that the server does not know the script.
pub(crate) fn forgotten(outcome: &RedisResult<Value>) -> bool {
    matches!(outcome, Err(e) if is(e, "NOSCRIPT"))
}
