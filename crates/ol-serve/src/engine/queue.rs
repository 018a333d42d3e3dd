//! The requests that wait, within limits.

use std::collections::BTreeMap;
use std::sync::Arc;

use ol_types::B256;

use super::options::EngineOptions;
use super::policy::{Counters, Place};
use super::row::Job;
use crate::request::OverloadLimit;

/// A tenant's requests and charges, by adapter.
#[derive(Debug, Default)]
struct Tenant {
    waiting: Vec<Job>,
    adapters: Counters<Option<B256>>,
}

/// The waiting requests, and what everybody was served.
#[derive(Debug, Default)]
pub(super) struct Queue {
    tenants: BTreeMap<Arc<str>, Tenant>,
    charges: Counters<Arc<str>>,
    n_waiting: usize,
    n_waiting_tokens: usize,
}

impl Queue {
    pub(super) const fn len(&self) -> usize {
        self.n_waiting
    }

    /// Every waiting request, in no order.
    pub(super) fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.tenants.values().flat_map(|tenant| &tenant.waiting)
    }

    /// Which limit `n` more requests of a tenant with so many tokens would
    /// exceed.
    pub(super) fn exceeded(
        &self,
        options: &EngineOptions,
        tenant: &Arc<str>,
        n: usize,
        n_tokens: usize,
    ) -> Option<OverloadLimit> {
        let n_of_tenant = self.tenants.get(tenant).map_or(0, |t| t.waiting.len());
        if self.n_waiting + n > options.n_waiting_max {
            Some(OverloadLimit::Requests)
        } else if n_of_tenant + n > options.n_waiting_per_tenant_max {
            Some(OverloadLimit::Tenant)
        } else if self.n_waiting_tokens.saturating_add(n_tokens) > options.n_waiting_tokens_max {
            Some(OverloadLimit::Tokens)
        } else {
            None
        }
    }

    /// Lets a request wait, whether it is new or was preempted.
    pub(super) fn push(&mut self, job: Job) {
        self.n_waiting += 1;
        self.n_waiting_tokens += job.tokens.len();
        self.charges.enter(&job.tenant);
        let tenant = self.tenants.entry(Arc::clone(&job.tenant)).or_default();
        tenant.adapters.enter(&job.adapter_hash());
        tenant.waiting.push(job);
    }

    /// The request to start next of those that `can_start`, given where it
    /// stands.
    pub(super) fn best(
        &self,
        now_s: f64,
        aging_s: f64,
        can_start: impl Fn(&Job) -> bool,
    ) -> Option<(Place, &Job)> {
        let place = |tenant: &Tenant, tenant_charge, job: &Job| Place {
            class: job.class(now_s, aging_s),
            tenant_charge,
            adapter_charge: tenant.adapters.charged(&job.adapter_hash()),
            arrival: job.arrival,
        };
        let tenants = self.tenants.iter().filter(|(_, t)| !t.waiting.is_empty());
        tenants
            .flat_map(|(name, tenant)| {
                let charge = self.charges.charged(name);
                let jobs = tenant.waiting.iter().filter(|job| can_start(job));
                jobs.map(move |job| (place(tenant, charge, job), job))
            })
            .min_by_key(|(place, _)| *place)
    }

    /// Takes a request out.
    pub(super) fn take(&mut self, tenant: &Arc<str>, arrival: u64) -> Option<Job> {
        let entry = self.tenants.get_mut(tenant)?;
        let at = entry.waiting.iter().position(|j| j.arrival == arrival)?;
        let job = entry.waiting.swap_remove(at);
        self.left(&job);
        Some(job)
    }

    /// Takes out whatever `is_over`.
    pub(super) fn remove_if(&mut self, is_over: impl Fn(&Job) -> bool) -> Vec<Job> {
        let mut removed = Vec::new();
        for tenant in self.tenants.values_mut() {
            removed.extend(tenant.waiting.extract_if(.., |job| is_over(job)));
        }
        for job in &removed {
            self.left(job);
        }
        removed
    }

    /// Charges a tenant, and its adapter, for what was computed.
    pub(super) fn charge(&mut self, job: &Job, cost: u64) {
        self.charges.charge(&job.tenant, cost);
        if let Some(tenant) = self.tenants.get_mut(&job.tenant) {
            tenant.adapters.charge(&job.adapter_hash(), cost);
        }
    }

    /// Counts a request out that was taken out.
    fn left(&mut self, job: &Job) {
        self.n_waiting -= 1;
        self.n_waiting_tokens -= job.tokens.len();
        self.charges.leave(&job.tenant);
        if let Some(tenant) = self.tenants.get_mut(&job.tenant) {
            tenant.adapters.leave(&job.adapter_hash());
            // Who does not wait has nothing to compare.
            if tenant.waiting.is_empty() {
                self.tenants.remove(&job.tenant);
            }
        }
    }
}
