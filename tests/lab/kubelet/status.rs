//! The status that a kubelet reports for a pod, from what it knows of its containers.

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What the kubelet knows of one container.
#[derive(Debug, Clone)]
pub(super) struct ContainerFacts {
    pub(super) name: String,
    pub(super) image: String,
    pub(super) state: Life,
    pub(super) before: Option<Ended>,
    pub(super) ready: bool,
    pub(super) restarts: i32,
}

#[derive(Debug, Clone)]
pub(super) enum Life {
    Waiting(&'static str),
    Running { since: Time, pid: u32 },
    Ended(Ended),
}

#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub(super) code: i32,
    pub(super) signal: Option<i32>,
    pub(super) since: Time,
    pub(super) at: Time,
}

/// What the kubelet knows of one pod.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) containers: Vec<ContainerFacts>,
    pub(super) host_ips: Vec<String>,
    pub(super) pod_ips: Vec<String>,
    pub(super) started: Time,
}

/// The whole status. Conditions that others own, such as readiness gates, stay as `pod` has them.
pub(super) fn of(pod: &Pod, facts: &Facts, now: &Time) -> PodStatus {
    let conditions_now = conditions(pod, facts);
    let mut conditions: Vec<PodCondition> =
        pod.status.iter().flat_map(|status| status.conditions.iter().flatten()).cloned().collect();
    for (kind, holds, reason) in conditions_now {
        let status = if holds { "True" } else { "False" };
        let reason = (!holds).then(|| reason.to_owned());
        match conditions.iter_mut().find(|condition| condition.type_ == kind) {
            Some(known) if known.status == status => known.reason = reason,
            Some(known) => {
                status.clone_into(&mut known.status);
                known.reason = reason;
                known.last_transition_time = Some(now.clone());
            }
            None => conditions.push(PodCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason,
                last_transition_time: Some(now.clone()),
                ..PodCondition::default()
            }),
        }
    }
    PodStatus {
        phase: Some(phase(facts).to_owned()),
        conditions: Some(conditions),
        host_ip: facts.host_ips.first().cloned(),
        host_ips: Some(facts.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: facts.pod_ips.first().cloned(),
        pod_ips: Some(facts.pod_ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect()),
        start_time: Some(facts.started.clone()),
        container_statuses: Some(facts.containers.iter().map(ContainerFacts::status).collect()),
        observed_generation: pod.metadata.generation,
        ..PodStatus::default()
    }
}

fn phase(facts: &Facts) -> &'static str {
    let ended: Vec<&Ended> = facts
        .containers
        .iter()
        .filter_map(|container| if let Life::Ended(ended) = &container.state { Some(ended) } else { None })
        .collect();
    if ended.len() < facts.containers.len() {
        // A container that waits for its next start has run before; one that never ran keeps the pod pending.
        let never_ran = |container: &ContainerFacts| {
            matches!(container.state, Life::Waiting(_)) && container.before.is_none()
        };
        return if facts.containers.iter().any(never_ran) { "Pending" } else { "Running" };
    }
    if ended.iter().all(|ended| ended.code == 0) { "Succeeded" } else { "Failed" }
}

fn conditions(pod: &Pod, facts: &Facts) -> [(&'static str, bool, &'static str); 4] {
    let containers_ready = facts.containers.iter().all(|container| container.ready);
    let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let gates_open = gates.into_iter().all(|gate| {
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions
            .into_iter()
            .any(|condition| condition.type_ == gate.condition_type && condition.status == "True")
    });
    let not_ready = if containers_ready { "ReadinessGatesNotReady" } else { "ContainersNotReady" };
    [
        ("PodReadyToStartContainers", !facts.pod_ips.is_empty(), "NoNetwork"),
        ("Initialized", true, ""),
        ("ContainersReady", containers_ready, "ContainersNotReady"),
        ("Ready", containers_ready && gates_open, not_ready),
    ]
}

impl ContainerFacts {
    fn status(&self) -> ContainerStatus {
        let running = matches!(self.state, Life::Running { .. });
        ContainerStatus {
            name: self.name.clone(),
            image: self.image.clone(),
            image_id: format!("lab://{}", self.image),
            container_id: match &self.state {
                Life::Running { pid, .. } => Some(format!("process://{pid}")),
                _ => None,
            },
            ready: self.ready,
            started: Some(running),
            restart_count: self.restarts,
            state: Some(match &self.state {
                Life::Waiting(reason) => ContainerState {
                    waiting: Some(ContainerStateWaiting {
                        reason: Some((*reason).to_owned()),
                        message: None,
                    }),
                    ..ContainerState::default()
                },
                Life::Running { since, .. } => ContainerState {
                    running: Some(ContainerStateRunning { started_at: Some(since.clone()) }),
                    ..ContainerState::default()
                },
                Life::Ended(ended) => ended.state(),
            }),
            last_state: self.before.as_ref().map(Ended::state),
            ..ContainerStatus::default()
        }
    }
}

impl Ended {
    fn state(&self) -> ContainerState {
        ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: self.code,
                signal: self.signal,
                reason: Some(if self.code == 0 { "Completed" } else { "Error" }.to_owned()),
                started_at: Some(self.since.clone()),
                finished_at: Some(self.at.clone()),
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
    }

    fn facts(state: Life, ready: bool) -> Facts {
        let container = ContainerFacts {
            name: "web".into(),
            image: "nginx".into(),
            state,
            before: None,
            ready,
            restarts: 0,
        };
        Facts {
            containers: vec![container],
            host_ips: vec!["172.30.0.11".into()],
            pod_ips: vec!["10.244.1.2".into()],
            started: time(1),
        }
    }

    fn condition<'a>(status: &'a PodStatus, kind: &str) -> &'a PodCondition {
        status.conditions.iter().flatten().find(|condition| condition.type_ == kind).unwrap()
    }

    #[test]
    fn a_running_pod_is_ready_when_its_probes_say_so_and_its_gates_are_open() {
        let running = Life::Running { since: time(1), pid: 7 };
        let pod: Pod =
            serde_yaml_ng::from_str("{spec: {containers: [], readinessGates: [{conditionType: lb}]}}")
                .unwrap();
        let status = of(&pod, &facts(running.clone(), true), &time(2));
        assert_eq!(status.phase.as_deref(), Some("Running"));
        assert_eq!(condition(&status, "ContainersReady").status, "True");
        assert_eq!(condition(&status, "Ready").reason.as_deref(), Some("ReadinessGatesNotReady"));

        let gated: Pod = serde_yaml_ng::from_str(
            "{spec: {containers: [], readinessGates: [{conditionType: lb}]}, status: {conditions: [{type: lb, status: 'True'}, {type: PodScheduled, status: 'True'}]}}",
        )
        .unwrap();
        let status = of(&gated, &facts(running, true), &time(2));
        assert_eq!(condition(&status, "Ready").status, "True");
        assert_eq!(condition(&status, "PodScheduled").status, "True", "the scheduler's condition stays");
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_changes() {
        let running = Life::Running { since: time(1), pid: 7 };
        let mut pod = Pod::default();
        pod.status = Some(of(&pod, &facts(running.clone(), true), &time(5)));
        let same = of(&pod, &facts(running.clone(), true), &time(9));
        assert_eq!(condition(&same, "Ready").last_transition_time, Some(time(5)));
        let changed = of(&pod, &facts(running, false), &time(9));
        assert_eq!(condition(&changed, "Ready").last_transition_time, Some(time(9)));
    }

    #[test]
    fn the_phase_follows_the_containers() {
        let ended = |code| Life::Ended(Ended { code, signal: None, since: time(1), at: time(2) });
        for (state, expected) in
            [(Life::Waiting("ContainerCreating"), "Pending"), (ended(0), "Succeeded"), (ended(137), "Failed")]
        {
            assert_eq!(phase(&facts(state, false)), expected);
        }
    }
}
