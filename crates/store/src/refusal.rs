//! Refusals by a storage that took requests with the same keys before.
//!
//! S3 can answer 403 for a moment after keys or rights changed, since they become known to its servers one after the other,
//! and MinIO was seen to refuse one of many equal requests under load. A training must not end for good because of that. Keys
//! that were never taken are told at once all the same.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use reqwest::{Method, StatusCode};

use crate::Limits;

/// Makes clients that doubt such refusals: a refused request is sent again, with the same signature, after each of the waits.
#[derive(Debug)]
pub(crate) struct Doubting {
    waits: [Duration; 2],
}

impl Doubting {
    /// With waits of two seconds in all, or less where an answer is waited for less long than usual.
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            waits: [limits.silence / 30, limits.silence / 10],
        }
    }
}

impl HttpConnector for Doubting {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Client {
            inner: ReqwestConnector::default().connect(options)?,
            waits: self.waits,
            taken: Mutex::default(),
        }))
    }
}

/// The client of one bucket.
#[derive(Debug)]
struct Client {
    inner: HttpClient,
    waits: [Duration; 2],
    /// Methods of requests that were answered well: whoever may read need not be allowed to write.
    taken: Mutex<HashSet<Method>>,
}

impl Client {
    fn taken(&self) -> MutexGuard<'_, HashSet<Method>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let method = request.method().clone();
        let mut waits = self.waits.iter();
        loop {
            let response = self.inner.execute(request.clone()).await?;
            if response.status().is_success() {
                self.taken().insert(method);
                return Ok(response);
            }
            let doubted = response.status() == StatusCode::FORBIDDEN && self.taken().contains(&method);
            match waits.next().filter(|_| doubted) {
                Some(wait) => tokio::time::sleep(*wait).await,
                None => return Ok(response),
            }
        }
    }
}
