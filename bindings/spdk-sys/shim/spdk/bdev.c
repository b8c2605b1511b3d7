/* Block devices. */
#include "spdk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <spdk/bdev_module.h>
#include <spdk/nvme.h>
#include <spdk/thread.h>
#include <spdk/uuid.h>

/* A claim belongs to a module. */
static int
module_init(void)
{
	return 0;
}

static struct spdk_bdev_module g_module = {
	.name = "bowline",
	.module_init = module_init,
};

SPDK_BDEV_MODULE_REGISTER(bowline, &g_module)

/* Whether what a flush answers is true. A device of another kind may have a drive behind it. */
static bool
can_flush(struct spdk_bdev *bdev)
{
	const char *module = spdk_bdev_get_module_name(bdev);

	if (!spdk_bdev_io_type_supported(bdev, SPDK_BDEV_IO_TYPE_FLUSH)) {
		return false;
	}
	if (bowline_drives_are_flushed() || strcmp(module, "malloc") == 0 || strcmp(module, "aio") == 0) {
		return true;
	}
	/* A drive without a cache has nothing to flush. */
	return strcmp(module, "nvme") == 0 && !spdk_bdev_has_write_cache(bdev);
}

static uint32_t
operations_of(struct spdk_bdev *bdev)
{
	static const struct {
		enum spdk_bdev_io_type type;
		uint32_t bit;
	} known[] = {
		{ SPDK_BDEV_IO_TYPE_READ, SHIM_BDEV_READ },
		{ SPDK_BDEV_IO_TYPE_WRITE, SHIM_BDEV_WRITE },
		{ SPDK_BDEV_IO_TYPE_FLUSH, SHIM_BDEV_FLUSH },
		{ SPDK_BDEV_IO_TYPE_UNMAP, SHIM_BDEV_UNMAP },
		{ SPDK_BDEV_IO_TYPE_WRITE_ZEROES, SHIM_BDEV_WRITE_ZEROES },
		{ SPDK_BDEV_IO_TYPE_COMPARE, SHIM_BDEV_COMPARE },
		{ SPDK_BDEV_IO_TYPE_COMPARE_AND_WRITE, SHIM_BDEV_COMPARE_AND_WRITE },
		{ SPDK_BDEV_IO_TYPE_RESET, SHIM_BDEV_RESET },
	};
	uint32_t operations = 0;

	for (size_t i = 0; i < SPDK_COUNTOF(known); i++) {
		if (spdk_bdev_io_type_supported(bdev, known[i].type)) {
			operations |= known[i].bit;
		}
	}
	if (!can_flush(bdev)) {
		operations &= ~(uint32_t)SHIM_BDEV_FLUSH;
	}
	/* SPDK does these itself where the device does not. */
	if ((operations & SHIM_BDEV_READ) != 0) {
		operations |= SHIM_BDEV_COMPARE;
		if ((operations & SHIM_BDEV_WRITE) != 0) {
			operations |= SHIM_BDEV_COMPARE_AND_WRITE;
		}
	}
	return operations;
}

static void
describe(struct spdk_bdev *bdev, struct shim_bdev_info *info)
{
	const struct spdk_uuid *uuid = spdk_bdev_get_uuid(bdev);

	memset(info, 0, sizeof(*info));
	snprintf(info->name, sizeof(info->name), "%s", spdk_bdev_get_name(bdev));
	snprintf(info->product, sizeof(info->product), "%s", spdk_bdev_get_product_name(bdev));
	snprintf(info->module, sizeof(info->module), "%s", spdk_bdev_get_module_name(bdev));
	_Static_assert(sizeof(info->uuid) == sizeof(*uuid), "16 bytes");
	if (uuid != NULL) {
		memcpy(info->uuid, uuid, sizeof(info->uuid));
	}
	info->block_bytes = spdk_bdev_get_data_block_size(bdev);
	info->blocks = spdk_bdev_get_num_blocks(bdev);
	info->metadata_bytes = spdk_bdev_get_md_size(bdev);
	info->physical_block_bytes = spdk_bdev_get_physical_block_size(bdev);
	info->write_unit_blocks = spdk_bdev_get_write_unit_size(bdev);
	info->compare_and_write_blocks = spdk_bdev_get_acwu(bdev);
	info->optimal_boundary_blocks = spdk_bdev_get_optimal_io_boundary(bdev);
	info->buffer_align = (uint32_t)spdk_bdev_get_buf_align(bdev);
	info->write_cache = spdk_bdev_has_write_cache(bdev);
	info->operations = operations_of(bdev);
}

struct each {
	shim_bdev_each_fn each;
	void *context;
};

static int
tell_bdev(void *context, struct spdk_bdev *bdev)
{
	struct each *each = context;
	struct shim_bdev_info info;

	describe(bdev, &info);
	each->each(each->context, &info);
	return 0;
}

void
shim_bdev_for_each(shim_bdev_each_fn each, void *context)
{
	struct each all = { each, context };

	spdk_for_each_bdev(&all, tell_bdev);
}

/* More than a socket holds of what the kernel tells. SPDK takes at least one in each call. */
#define KERNEL_EVENTS_MAX 2048

void
shim_nvme_catch_up(void)
{
	struct spdk_nvme_transport_id pci;

	memset(&pci, 0, sizeof(pci));
	spdk_nvme_trid_populate_transport(&pci, SPDK_NVME_TRANSPORT_PCIE);
	for (int i = 0; i < KERNEL_EVENTS_MAX && spdk_nvme_scan_attached(&pci) == 0; i++) {
	}
}

/* What a drive says of itself is filled up with spaces, and may end with a NUL. */
static void
copy_text(char *to, const uint8_t *from, size_t bytes)
{
	memcpy(to, from, bytes);
	to[bytes] = '\0';
	for (size_t length = strlen(to); length > 0 && to[length - 1] == ' '; length--) {
		to[length - 1] = '\0';
	}
}

static void
ignore_event(enum spdk_bdev_event_type type, struct spdk_bdev *bdev, void *context)
{
	(void)type;
	(void)bdev;
	(void)context;
}

static int
identify(struct spdk_bdev_desc *desc, struct shim_nvme_identity *identity)
{
	const struct spdk_nvme_ctrlr_data *drive;
	const struct spdk_nvme_ns_data *data;
	const struct spdk_uuid *uuid;
	struct spdk_nvme_ns *ns;

	if (strcmp(spdk_bdev_get_module_name(spdk_bdev_desc_get_bdev(desc)), "nvme") != 0) {
		return -ENOTSUP;
	}
	/* With this module it is the namespace; none when its drive is going. */
	ns = spdk_bdev_get_module_ctx(desc);
	if (ns == NULL) {
		return -ENODEV;
	}
	memset(identity, 0, sizeof(*identity));
	drive = spdk_nvme_ctrlr_get_data(spdk_nvme_ns_get_ctrlr(ns));
	_Static_assert(sizeof(identity->serial) == sizeof(drive->sn) + 1, "and a NUL");
	copy_text(identity->serial, (const uint8_t *)drive->sn, sizeof(drive->sn));
	_Static_assert(sizeof(identity->model) == sizeof(drive->mn) + 1, "and a NUL");
	copy_text(identity->model, (const uint8_t *)drive->mn, sizeof(drive->mn));
	identity->nsid = spdk_nvme_ns_get_id(ns);
	data = spdk_nvme_ns_get_data(ns);
	_Static_assert(sizeof(identity->nguid) == sizeof(data->nguid), "16 bytes");
	memcpy(identity->nguid, data->nguid, sizeof(identity->nguid));
	_Static_assert(sizeof(identity->eui64) == sizeof(data->eui64), "8 bytes");
	memcpy(identity->eui64, &data->eui64, sizeof(identity->eui64));
	uuid = spdk_nvme_ns_get_uuid(ns);
	if (uuid != NULL) {
		memcpy(identity->uuid, uuid, sizeof(identity->uuid));
	}
	return 0;
}

int
shim_bdev_nvme_identity(const char *name, struct shim_nvme_identity *identity)
{
	struct spdk_bdev_desc *desc;
	int rc = spdk_bdev_open_ext(name, false, ignore_event, NULL, &desc);

	if (rc == 0) {
		rc = identify(desc, identity);
		spdk_bdev_close(desc);
	}
	return rc;
}

static void
bdev_event(enum spdk_bdev_event_type type, struct spdk_bdev *bdev, void *context)
{
	struct shim_bdev_desc *desc = context;

	(void)bdev;
	switch (type) {
	case SPDK_BDEV_EVENT_REMOVE:
		desc->event(desc->context, SHIM_BDEV_REMOVED);
		break;
	case SPDK_BDEV_EVENT_RESIZE:
		desc->event(desc->context, SHIM_BDEV_RESIZED);
		break;
	default:
		break;
	}
}

int
shim_bdev_open(const char *name, bool write, shim_bdev_event_fn event, void *context,
	       shim_bdev_desc **out)
{
	struct shim_bdev_desc *desc = calloc(1, sizeof(*desc));
	int rc;

	if (desc == NULL) {
		return -ENOMEM;
	}
	desc->event = event;
	desc->context = context;
	rc = spdk_bdev_open_ext(name, write, bdev_event, desc, &desc->desc);
	if (rc == 0 && write) {
		rc = spdk_bdev_module_claim_bdev_desc(desc->desc,
						      SPDK_BDEV_CLAIM_READ_MANY_WRITE_ONE, NULL,
						      &g_module);
		if (rc != 0) {
			spdk_bdev_close(desc->desc);
		}
	}
	if (rc != 0) {
		free(desc);
		return rc;
	}
	*out = desc;
	return 0;
}

void
shim_bdev_close(shim_bdev_desc *desc)
{
	spdk_bdev_close(desc->desc);
	free(desc);
}

void
shim_bdev_info(const shim_bdev_desc *desc, struct shim_bdev_info *info)
{
	describe(spdk_bdev_desc_get_bdev(desc->desc), info);
}

shim_channel *
shim_bdev_channel(shim_bdev_desc *desc)
{
	return (shim_channel *)spdk_bdev_get_io_channel(desc->desc);
}

void
shim_channel_put(shim_channel *channel)
{
	spdk_put_io_channel(to_channel(channel));
}
