//! Tokens to log in with (OAUTHBEARER), whoever gives them.
//!
//! librdkafka asks for a token in a callback where nothing may block, so tokens are fetched ahead: the callback
//! hands out the one at hand and says that it ends earlier than it does, and whenever little is left of it a thread
//! of its own fetches the next. A giver that is away for a while is not noticed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mecha_components_api::{Error, Result, Secret};
use parking_lot::Mutex;

use crate::aws::Aws;
use crate::oidc::Oidc;
use crate::producer::apart;

/// Longest wait for a token.
const FETCH_LIMIT: Duration = Duration::from_secs(10);

/// Who gives tokens.
pub(crate) enum Source {
    Oidc(Oidc),
    Aws(Aws),
}

/// A token and its time.
#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) text: Secret,
    /// Whom it stands for.
    pub(crate) client: String,
    pub(crate) fetched: SystemTime,
    pub(crate) ends: SystemTime,
}

/// The tokens of one component. Clones are the same.
#[derive(Clone)]
pub(crate) struct Tokens {
    source: Arc<Source>,
    at_hand: Arc<Mutex<Option<Token>>>,
    fetching: Arc<AtomicBool>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("giver", &self.source.name()).finish_non_exhaustive()
    }
}

impl Source {
    fn name(&self) -> &str {
        match self {
            Self::Oidc(oidc) => oidc.endpoint(),
            Self::Aws(aws) => aws.host(),
        }
    }

    async fn fetch(&self) -> Result<Token> {
        let fetch = async {
            match self {
                Self::Oidc(oidc) => oidc.fetch().await,
                Self::Aws(aws) => aws.fetch().await,
            }
        };
        let limit = tokio::time::timeout(FETCH_LIMIT, fetch).await;
        limit.map_err(|_| Error::timeout(format!("{} gave no token within {FETCH_LIMIT:?}", self.name())))?
    }
}

impl Token {
    /// When librdkafka shall ask again, in milliseconds since 1970: it does so at four fifths of this, and by then
    /// the next token is at hand.
    pub(crate) fn half_way_ms(&self) -> i64 {
        let left = self.ends.duration_since(SystemTime::now()).unwrap_or_default();
        let until = SystemTime::now() + (left / 2).max(Duration::from_secs(1)).min(left);
        until.duration_since(UNIX_EPOCH).ok().and_then(|t| i64::try_from(t.as_millis()).ok()).unwrap_or(i64::MAX)
    }

    fn holds(&self) -> bool {
        SystemTime::now() < self.ends
    }

    /// Whether the next one should be fetched.
    fn ages(&self) -> bool {
        let life = self.ends.duration_since(self.fetched).unwrap_or_default();
        self.fetched.elapsed().unwrap_or_default() >= life * 2 / 5
    }
}

impl Tokens {
    pub(crate) fn new(source: Source) -> Self {
        Self { source: Arc::new(source), at_hand: Arc::default(), fetching: Arc::default() }
    }

    /// Makes sure that a token is at hand.
    ///
    /// # Errors
    /// The giver cannot be reached or refuses.
    pub(crate) async fn prime(&self) -> Result<()> {
        if self.at_hand.lock().as_ref().is_some_and(Token::holds) {
            return Ok(());
        }
        let token = self.source.fetch().await?;
        *self.at_hand.lock() = Some(token);
        Ok(())
    }

    /// The token at hand, at once; begins to fetch the next one where little is left of it.
    pub(crate) fn now(&self) -> Option<Token> {
        let token = self.at_hand.lock().clone().filter(Token::holds);
        if token.as_ref().is_none_or(Token::ages) && !self.fetching.swap(true, Ordering::SeqCst) {
            let tokens = self.clone();
            apart("kafka-token", move || tokens.refresh());
        }
        token
    }

    fn refresh(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let fetched = match runtime {
            Ok(runtime) => runtime.block_on(self.source.fetch()),
            Err(e) => Err(Error::unavailable("no thread can fetch a token").with_source(e)),
        };
        match fetched {
            Ok(token) => *self.at_hand.lock() = Some(token),
            Err(e) => tracing::warn!(giver = self.source.name(), "no new token for Kafka: {e}; it is tried again"),
        }
        self.fetching.store(false, Ordering::SeqCst);
    }
}
