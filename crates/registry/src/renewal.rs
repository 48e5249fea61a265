//! Credentials that change while blobs are being read.
//!
//! A node's mount outlives the secrets with which it was made, and several pods with secrets of their own share it. So a
//! source reads with the newest credentials, keeps those that the registry accepted last in reserve, and goes back to them
//! when the newest are refused: a pod with a wrong secret takes nothing away from the others.
//!
//! Each set of credentials has a client of its own, so tokens and redirects got with old ones are never used with new
//! ones. A request takes the client once, at its start; a renewal swaps it for all clones of the source at once.

use std::sync::{Arc, PoisonError, RwLock};

use crate::client::Client;
use crate::credentials::Credentials;
use crate::error::{ClientError, FetchError, RequestError};

/// The clients of one source.
#[derive(Debug)]
pub(crate) struct Clients {
    state: RwLock<State>,
}

#[derive(Clone, Debug)]
struct State {
    /// Used for the next request.
    current: Client,
    /// Whether the registry gave it anything yet.
    accepted: bool,
    /// Tried when `current` is refused.
    reserve: Option<Client>,
    /// Whether credentials are still to come: until then a refusal is no last word.
    awaited: bool,
}

impl Clients {
    pub(crate) fn new(client: Client) -> Clients {
        let state = State {
            current: client,
            accepted: false,
            reserve: None,
            awaited: false,
        };
        Clients {
            state: RwLock::new(state),
        }
    }

    pub(crate) fn current(&self) -> Client {
        self.read().current
    }

    pub(crate) fn renew(&self, credentials: &Credentials) -> Result<(), ClientError> {
        let client = self.current().with_credentials(credentials)?;
        self.change(|state| state.renew(client));
        Ok(())
    }

    pub(crate) fn expect_renewal(&self) {
        self.change(|state| state.awaited = true);
    }

    /// The registry gave something to `client`.
    pub(crate) fn accepted(&self, client: &Client) {
        let state = self.read();
        if !state.accepted && is_same(&state.current, client) {
            self.change(|state| state.accepted |= is_same(&state.current, client));
        }
    }

    /// The registry refused `client`: the one to try instead, if there is another.
    pub(crate) fn instead_of(&self, client: &Client) -> Option<Client> {
        let mut other = None;
        self.change(|state| other = state.instead_of(client));
        other
    }

    /// What a refusal means to who reads.
    pub(crate) fn refused(&self, error: RequestError) -> FetchError {
        match self.read().awaited {
            true => FetchError::CredentialsToCome(error),
            false => error.into(),
        }
    }

    fn read(&self) -> State {
        self.state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner));
    }
}

impl State {
    fn renew(&mut self, client: Client) {
        let previous = std::mem::replace(&mut self.current, client);
        // Of what was there before credentials came, nothing was ever accepted.
        if !self.awaited && (self.accepted || self.reserve.is_none()) {
            self.reserve = Some(previous);
        }
        (self.accepted, self.awaited) = (false, false);
    }

    fn instead_of(&mut self, client: &Client) -> Option<Client> {
        // If it is not the current one, somebody changed that in the meantime.
        if is_same(&self.current, client) {
            std::mem::swap(&mut self.current, self.reserve.as_mut()?);
            self.accepted = false;
        }
        Some(self.current.clone())
    }
}

fn is_same(a: &Client, b: &Client) -> bool {
    Arc::ptr_eq(&a.inner, &b.inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::ClientOptions;

    fn client() -> Client {
        let options = ClientOptions {
            credentials: Credentials::Anonymous,
            ..ClientOptions::default()
        };
        Client::new(options).unwrap()
    }

    fn clients(first: &Client, then: &[&Client]) -> Clients {
        let clients = Clients::new(first.clone());
        for client in then {
            clients.change(|state| state.renew((*client).clone()));
        }
        clients
    }

    fn falls_back(clients: &Clients, refused: &Client, to: &Client) {
        let other = clients.instead_of(refused).expect("another one");
        assert!(is_same(&other, to) && is_same(&clients.current(), to));
    }

    #[test]
    fn a_source_with_one_set_of_credentials_has_no_other() {
        let only = client();
        assert!(clients(&only, &[]).instead_of(&only).is_none());
    }

    #[test]
    fn any_number_of_wrong_secrets_leaves_the_good_one_in_reserve() {
        let (good, wrong, worse) = (client(), client(), client());
        let clients = clients(&good, &[]);
        clients.accepted(&good);
        clients.change(|state| state.renew(wrong.clone()));
        clients.change(|state| state.renew(worse.clone()));
        falls_back(&clients, &worse, &good);
        clients.accepted(&good);
        clients.change(|state| state.renew(wrong.clone()));
        falls_back(&clients, &wrong, &good);
    }

    #[test]
    fn a_set_that_was_refused_once_is_tried_again_when_the_other_is_refused() {
        let (old, new) = (client(), client());
        let clients = clients(&old, &[&new]);
        falls_back(&clients, &new, &old);
        falls_back(&clients, &old, &new);
    }

    #[test]
    fn a_request_that_was_refused_while_credentials_changed_gets_the_new_ones() {
        let (old, new) = (client(), client());
        let clients = clients(&old, &[&new]);
        falls_back(&clients, &old, &new);
        assert!(is_same(&clients.current(), &new), "they stay");
    }

    #[test]
    fn what_was_there_before_credentials_came_is_no_reserve() {
        let (nobody, somebody) = (client(), client());
        let clients = clients(&nobody, &[]);
        clients.expect_renewal();
        clients.change(|state| state.renew(somebody.clone()));
        assert!(clients.instead_of(&somebody).is_none());
    }
}
