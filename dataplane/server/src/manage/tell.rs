//! What other reactors and discovery are told of a change.

use std::sync::Arc;

use bowline_api::Failure;

use super::Manager;
use crate::fleet::Service;

impl Manager {
    /// Tells the other reactors where a subsystem lives, so that they hand its
    /// connections over; or that it is gone.
    pub(crate) async fn route(&self, nqn: &str, owner: Option<usize>) -> Result<(), Failure> {
        for index in 0..self.fleet.members.len() {
            let name = nqn.to_owned();
            match owner.and_then(|owner| self.fleet.members.get(owner)) {
                Some(_) if owner == Some(index) => {}
                Some(member) => {
                    let route = member.route();
                    self.fleet
                        .call(index, move |service, _, _| service.set_route(name, route))
                        .await?;
                }
                None => {
                    self.fleet
                        .call(index, move |service, _, _| service.clear_route(&name))
                        .await?;
                }
            }
        }
        Ok(())
    }

    /// The same, for subsystems of the pool's reactor that have just come.
    pub(crate) async fn route_all(&self, nqns: Vec<String>) -> Result<(), Failure> {
        let owner = self.pool_reactor();
        let Some(member) = self.fleet.members.get(owner) else {
            return Ok(());
        };
        for index in (0..self.fleet.members.len()).filter(|index| *index != owner) {
            let (route, nqns) = (member.route(), nqns.clone());
            let set = move |service: &mut Service, _: &mut _, _| {
                for nqn in nqns {
                    service.set_route(nqn, route.clone());
                }
            };
            self.fleet.call(index, set).await?;
        }
        Ok(())
    }

    pub(crate) async fn tell_discovery(&mut self) -> Result<(), Failure> {
        let entries = self.catalog.discovery(&self.portals);
        let table = Arc::new(self.discovery.next(entries));
        self.discovery = Arc::clone(&table);
        for index in 0..self.fleet.members.len() {
            let table = Arc::clone(&table);
            self.fleet
                .call(index, move |service, _, now| {
                    service.target().set_discovery(now, table)
                })
                .await?;
        }
        Ok(())
    }
}
