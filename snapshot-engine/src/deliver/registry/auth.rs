//! Who asks: HTTP's basic scheme, or a token of the registry's token service (distribution, docs/spec/auth/token.md and oauth.md).
//!
//! What is sent along is what the last challenge asked for. A request that is refused with a challenge makes it anew, once: that is how a token that has expired is
//! replaced. It goes to the registry's own address only.

use std::sync::Mutex;

use oci_client::secrets::RegistryAuth;
use reqwest::header::HeaderValue;
use reqwest::{Method, Url};
use serde::Deserialize;

use super::credentials::Found;
use super::retry::Trouble;
use super::wire::{Ask, Wire};
use crate::deliver::DeliverError;
use crate::deliver::error::said;

/// What the registry has been told of us.
#[derive(Debug)]
pub(super) struct Auth {
    known: Option<Found>,
    /// The `Authorization` header, after the first challenge.
    header: Mutex<Option<HeaderValue>>,
    /// Held while a challenge is answered: of several requests that are refused for one expired token, one gets the next.
    answering: tokio::sync::Mutex<()>,
    /// What a token is to be good for.
    scopes: Vec<String>,
}

impl Auth {
    pub(super) fn new(known: Option<Found>, repository: &str, near: &[String]) -> Auth {
        let own = format!("repository:{repository}:pull,push");
        let near = near.iter().map(|other| format!("repository:{other}:pull"));
        Auth {
            known,
            header: Mutex::new(None),
            answering: tokio::sync::Mutex::default(),
            scopes: [own].into_iter().chain(near).collect(),
        }
    }

    pub(super) fn is_known(&self) -> bool {
        self.known.is_some()
    }

    pub(super) fn header(&self) -> Option<HeaderValue> {
        self.header.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn set(&self, header: HeaderValue) {
        *self.header.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(header);
    }

    /// Does what a challenge asks for; `used` is what the refused request had. `false` if there is nothing to answer it with.
    pub(super) async fn answer(
        &self,
        wire: &Wire<'_>,
        challenges: &[String],
        used: Option<&HeaderValue>,
    ) -> Result<bool, Trouble> {
        let _answering = self.answering.lock().await;
        // Another request may have answered it meanwhile.
        if self.header().as_ref() != used {
            return Ok(true);
        }
        for challenge in challenges {
            let Ok(all) = http_auth::parse_challenges(challenge) else { continue };
            for challenge in all {
                let param = |name: &str| {
                    let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer")
                    && let Some(realm) = param("realm")
                {
                    let token = self.token(wire, &realm, param("service")).await?;
                    self.set(secret(&format!("Bearer {token}"), wire)?);
                    return Ok(true);
                }
                if challenge.scheme.eq_ignore_ascii_case("basic")
                    && let Some(RegistryAuth::Basic(name, password)) = self.basic()
                    // Refused already: it will not be taken the second time either.
                    && used.is_none()
                {
                    self.set(secret(&basic(&name, &password), wire)?);
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn basic(&self) -> Option<RegistryAuth> {
        match &self.known {
            Some(Found::Login(login)) => {
                Some(RegistryAuth::Basic(login.username.clone(), login.password.clone()))
            }
            _ => None,
        }
    }

    async fn token(&self, wire: &Wire<'_>, realm: &str, service: Option<String>) -> Result<String, Trouble> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let mut url = Url::parse(realm).map_err(|e| wire.nonsense(format!("its token service: {e}")))?;
        if url.scheme() != "https" && !wire.is_plain() && self.known.is_some() {
            return Err(wire
                .nonsense("its token service would get the password in the clear".to_owned())
                .into());
        }
        let ask = if let Some(Found::Identity(token)) = &self.known {
            let scope = self.scopes.join(" ");
            let mut form = Url::parse("http://x/").map_err(|e| wire.nonsense(e.to_string()))?;
            form.query_pairs_mut()
                .append_pair("grant_type", "refresh_token")
                .append_pair("refresh_token", token)
                .append_pair("client_id", "snapshot-engine")
                .append_pair("service", service.as_deref().unwrap_or_default())
                .append_pair("scope", &scope);
            Ask::new(Method::POST, url, "a token")
                .with("content-type", "application/x-www-form-urlencoded")
                .bytes(form.query().unwrap_or_default().as_bytes().to_vec())
        } else {
            {
                let mut query = url.query_pairs_mut();
                if let Some(service) = &service {
                    query.append_pair("service", service);
                }
                for scope in &self.scopes {
                    query.append_pair("scope", scope);
                }
                if let Some(Found::Login(login)) = &self.known {
                    query.append_pair("account", &login.username);
                }
            }
            let ask = Ask::new(Method::GET, url, "a token");
            match self.basic() {
                Some(RegistryAuth::Basic(name, password)) => {
                    ask.authorized(secret(&basic(&name, &password), wire)?)
                }
                _ => ask,
            }
        };
        let answer = wire.once_plainly(&ask).await?;
        match answer.status {
            200 => {}
            401 | 403 => return Err(wire.unauthorized(&answer).into()),
            _ => return Err(wire.refused(&ask, &answer)),
        }
        let token: Answer = serde_json::from_slice(&answer.body)
            .map_err(|_| wire.nonsense("its token service's answer is not understood".to_owned()))?;
        let token = if token.token.is_empty() { token.access_token } else { token.token };
        if token.is_empty() {
            return Err(wire.nonsense("its token service gave no token".to_owned()).into());
        }
        Ok(token)
    }
}

fn basic(name: &str, password: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}")))
}

/// A header that is not printed.
fn secret(text: &str, wire: &Wire<'_>) -> Result<HeaderValue, DeliverError> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| wire.nonsense(said("the credentials have characters that no header can have")))?;
    value.set_sensitive(true);
    Ok(value)
}
