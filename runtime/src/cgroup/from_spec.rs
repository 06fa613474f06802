//! oci-spec's resources as ours, field by field.

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxNetwork, LinuxResources,
    LinuxThrottleDevice,
};

use super::devices::DeviceRule;
use super::resources::{
    BlockIo, Cpu, HugepageLimit, InterfacePriority, Memory, Network, Pids, Rdma, Resources,
    ThrottleDevice, WeightDevice,
};

impl From<&LinuxResources> for Resources {
    fn from(spec: &LinuxResources) -> Self {
        let hugepages = spec.hugepage_limits().as_ref().map(|limits| {
            let limit = |limit: i64| u64::try_from(limit).unwrap_or(u64::MAX);
            limits
                .iter()
                .map(|l| HugepageLimit {
                    page_size: l.page_size().clone(),
                    limit: limit(l.limit()),
                })
                .collect()
        });
        let rdma = spec.rdma().as_ref().map(|devices| {
            let limits = |rdma: &oci_spec::runtime::LinuxRdma| Rdma {
                hca_handles: rdma.hca_handles(),
                hca_objects: rdma.hca_objects(),
            };
            devices.iter().map(|(device, rdma)| (device.clone(), limits(rdma))).collect()
        });
        let unified = spec.unified().as_ref();
        Self {
            devices: spec.devices().as_ref().map(|rules| rules.iter().map(device_rule).collect()),
            memory: spec.memory().as_ref().map(memory),
            cpu: spec.cpu().as_ref().map(cpu),
            pids: spec.pids().as_ref().map(|pids| Pids { limit: Some(pids.limit()) }),
            block_io: spec.block_io().as_ref().map(block_io),
            hugepage_limits: hugepages,
            network: spec.network().as_ref().map(network),
            rdma,
            unified: unified.map(|files| files.clone().into_iter().collect()),
        }
    }
}

fn device_rule(rule: &LinuxDeviceCgroup) -> DeviceRule {
    DeviceRule {
        allow: rule.allow(),
        kind: rule.typ().map(|kind| kind.as_str().to_owned()),
        major: rule.major(),
        minor: rule.minor(),
        access: rule.access().clone(),
    }
}

fn memory(memory: &LinuxMemory) -> Memory {
    Memory {
        limit: memory.limit(),
        reservation: memory.reservation(),
        swap: memory.swap(),
        swappiness: memory.swappiness(),
        disable_oom_killer: memory.disable_oom_killer(),
        check_before_update: memory.check_before_update(),
    }
}

fn cpu(cpu: &LinuxCpu) -> Cpu {
    Cpu {
        shares: cpu.shares(),
        quota: cpu.quota(),
        burst: cpu.burst(),
        period: cpu.period(),
        realtime_runtime: cpu.realtime_runtime(),
        realtime_period: cpu.realtime_period(),
        cpus: cpu.cpus().clone(),
        mems: cpu.mems().clone(),
        idle: cpu.idle(),
    }
}

fn block_io(block_io: &LinuxBlockIo) -> BlockIo {
    let weights = block_io.weight_device().as_ref().map(|devices| {
        devices
            .iter()
            .map(|device| WeightDevice {
                major: device.major(),
                minor: device.minor(),
                weight: device.weight(),
                leaf_weight: device.leaf_weight(),
            })
            .collect()
    });
    BlockIo {
        weight: block_io.weight(),
        leaf_weight: block_io.leaf_weight(),
        weight_device: weights,
        throttle_read_bps_device: throttles(block_io.throttle_read_bps_device()),
        throttle_write_bps_device: throttles(block_io.throttle_write_bps_device()),
        throttle_read_iops_device: throttles(block_io.throttle_read_iops_device()),
        throttle_write_iops_device: throttles(block_io.throttle_write_iops_device()),
    }
}

fn throttles(devices: &Option<Vec<LinuxThrottleDevice>>) -> Option<Vec<ThrottleDevice>> {
    let throttle = |device: &LinuxThrottleDevice| ThrottleDevice {
        major: device.major(),
        minor: device.minor(),
        rate: device.rate(),
    };
    devices.as_ref().map(|devices| devices.iter().map(throttle).collect())
}

fn network(network: &LinuxNetwork) -> Network {
    let priorities = network.priorities().as_ref().map(|interfaces| {
        interfaces
            .iter()
            .map(|interface| InterfacePriority {
                name: interface.name().clone(),
                priority: interface.priority(),
            })
            .collect()
    });
    Network { class_id: network.class_id(), priorities }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every key of the spec comes out as when our own type reads the JSON.
    #[test]
    fn nothing_is_lost_on_the_way() {
        let json = r#"{
            "devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":3,"access":"rw"}],
            "memory":{"limit":1,"reservation":2,"swap":3,"swappiness":4,"disableOOMKiller":true,"checkBeforeUpdate":true},
            "cpu":{"shares":1,"quota":2,"burst":3,"period":4,"realtimeRuntime":5,"realtimePeriod":6,"cpus":"0","mems":"1","idle":1},
            "pids":{"limit":7},
            "blockIO":{"weight":10,"leafWeight":11,
                "weightDevice":[{"major":8,"minor":0,"weight":12,"leafWeight":13}],
                "throttleReadBpsDevice":[{"major":8,"minor":1,"rate":1}],
                "throttleWriteBpsDevice":[{"major":8,"minor":2,"rate":2}],
                "throttleReadIOPSDevice":[{"major":8,"minor":3,"rate":3}],
                "throttleWriteIOPSDevice":[{"major":8,"minor":4,"rate":4}]},
            "hugepageLimits":[{"pageSize":"2MB","limit":5}],
            "network":{"classID":6,"priorities":[{"name":"eth0","priority":7}]},
            "rdma":{"mlx5_1":{"hcaHandles":8,"hcaObjects":9}},
            "unified":{"memory.high":"10"}}"#;
        let spec: LinuxResources = serde_json::from_str(json).unwrap();
        let ours: Resources = serde_json::from_str(json).unwrap();
        assert_eq!(Resources::from(&spec), ours);
        assert_eq!(
            serde_json::to_value(&ours).unwrap(),
            serde_json::from_str::<serde_json::Value>(json).unwrap()
        );
    }
}
