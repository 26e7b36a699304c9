package virtio

// Feature bits of rings and transport (virtio 1.2 §6).
const (
	// FeatureIndirect is VIRTIO_F_INDIRECT_DESC.
	FeatureIndirect uint64 = 1 << 28
	// FeatureEventIndex is VIRTIO_F_EVENT_IDX.
	FeatureEventIndex uint64 = 1 << 29
	// FeatureVersion1 is VIRTIO_F_VERSION_1, without which no driver is served.
	FeatureVersion1 uint64 = 1 << 32
)

// TransportFeatures are those that are offered beside a device's own.
const TransportFeatures = FeatureIndirect | FeatureEventIndex | FeatureVersion1
