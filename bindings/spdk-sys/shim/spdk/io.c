/* Requests to block devices. */
#include "spdk.h"

#include <errno.h>
#include <sys/uio.h>

#include <spdk/nvme_spec.h>

_Static_assert(sizeof(struct shim_slice) == sizeof(struct iovec), "a slice is an iovec");
_Static_assert(offsetof(struct shim_slice, base) == offsetof(struct iovec, iov_base), "iovec");
_Static_assert(offsetof(struct shim_slice, bytes) == offsetof(struct iovec, iov_len), "iovec");

static uint16_t
status_of(int type, int code)
{
	return (uint16_t)((type & 0x7) << 8 | (code & 0xff));
}

static void
request_done(struct spdk_bdev_io *io, bool success, void *context)
{
	struct shim_request *request = context;
	uint16_t status = 0;

	if (!success) {
		uint32_t result;
		int type, code;

		spdk_bdev_io_get_nvme_status(io, &result, &type, &code);
		status = status_of(type, code);
		if (status == 0) {
			status = status_of(SPDK_NVME_SCT_GENERIC, SPDK_NVME_SC_INTERNAL_DEVICE_ERROR);
		}
	}
	spdk_bdev_free_io(io);
	request->done(request->context, status);
}

/*
 * Of a compare, alone or before a write: the first that failed counts. Where SPDK compares itself, old
 * versions tell a difference only this way.
 */
static void
compare_done(struct spdk_bdev_io *io, bool success, void *context)
{
	struct shim_request *request = context;
	uint16_t status = 0;

	if (!success) {
		uint32_t result;
		int type, code, write_type, write_code;

		spdk_bdev_io_get_nvme_fused_status(io, &result, &type, &code, &write_type, &write_code);
		status = status_of(type, code);
		if (status == 0) {
			status = status_of(write_type, write_code);
		}
		if (status == 0) {
			status = status_of(SPDK_NVME_SCT_GENERIC, SPDK_NVME_SC_INTERNAL_DEVICE_ERROR);
		}
	}
	spdk_bdev_free_io(io);
	request->done(request->context, status);
}

/* SPDK trusts its caller with this: a device would read or write beyond what it was given. */
static bool
covers(const shim_bdev_desc *desc, const struct shim_slice *slices, uint32_t count, uint64_t blocks)
{
	uint64_t block_bytes = spdk_bdev_get_data_block_size(spdk_bdev_desc_get_bdev(desc->desc));
	uint64_t wanted, bytes = 0;

	if (blocks == 0 || __builtin_mul_overflow(blocks, block_bytes, &wanted)) {
		return false;
	}
	for (uint32_t i = 0; i < count; i++) {
		if (__builtin_add_overflow(bytes, slices[i].bytes, &bytes)) {
			return false;
		}
	}
	return bytes == wanted;
}

/* SPDK does not change what it is given, but does not say so. */
static struct iovec *
to_iov(const struct shim_slice *slices)
{
	return (struct iovec *)(uintptr_t)slices;
}

int
shim_bdev_read(shim_bdev_desc *desc, shim_channel *channel, const struct shim_slice *slices,
	       uint32_t slice_count, uint64_t block, uint64_t blocks, struct shim_request *request)
{
	if (!covers(desc, slices, slice_count, blocks)) {
		return -EINVAL;
	}
	return spdk_bdev_readv_blocks(desc->desc, to_channel(channel), to_iov(slices),
				      (int)slice_count, block, blocks, request_done, request);
}

int
shim_bdev_write(shim_bdev_desc *desc, shim_channel *channel, const struct shim_slice *slices,
		uint32_t slice_count, uint64_t block, uint64_t blocks, struct shim_request *request)
{
	if (!covers(desc, slices, slice_count, blocks)) {
		return -EINVAL;
	}
	return spdk_bdev_writev_blocks(desc->desc, to_channel(channel), to_iov(slices),
				       (int)slice_count, block, blocks, request_done, request);
}

int
shim_bdev_compare(shim_bdev_desc *desc, shim_channel *channel, const struct shim_slice *slices,
		  uint32_t slice_count, uint64_t block, uint64_t blocks, struct shim_request *request)
{
	if (!covers(desc, slices, slice_count, blocks)) {
		return -EINVAL;
	}
	return spdk_bdev_comparev_blocks(desc->desc, to_channel(channel), to_iov(slices),
					 (int)slice_count, block, blocks, compare_done, request);
}

int
shim_bdev_compare_and_write(shim_bdev_desc *desc, shim_channel *channel,
			    const struct shim_slice *compare, uint32_t compare_count,
			    const struct shim_slice *write, uint32_t write_count, uint64_t block,
			    uint64_t blocks, struct shim_request *request)
{
	if (!covers(desc, compare, compare_count, blocks) ||
	    !covers(desc, write, write_count, blocks)) {
		return -EINVAL;
	}
	return spdk_bdev_comparev_and_writev_blocks(desc->desc, to_channel(channel),
			to_iov(compare), (int)compare_count, to_iov(write), (int)write_count, block,
			blocks, compare_done, request);
}

int
shim_bdev_flush(shim_bdev_desc *desc, shim_channel *channel, uint64_t block, uint64_t blocks,
		struct shim_request *request)
{
	return spdk_bdev_flush_blocks(desc->desc, to_channel(channel), block, blocks, request_done,
				      request);
}

int
shim_bdev_unmap(shim_bdev_desc *desc, shim_channel *channel, uint64_t block, uint64_t blocks,
		struct shim_request *request)
{
	/* A device of NVMe counts from 0: none would be as many as there can be. */
	if (blocks == 0) {
		return -EINVAL;
	}
	return spdk_bdev_unmap_blocks(desc->desc, to_channel(channel), block, blocks, request_done,
				      request);
}

int
shim_bdev_write_zeroes(shim_bdev_desc *desc, shim_channel *channel, uint64_t block,
		       uint64_t blocks, struct shim_request *request)
{
	/* A device of NVMe counts from 0: none would be as many as there can be. */
	if (blocks == 0) {
		return -EINVAL;
	}
	return spdk_bdev_write_zeroes_blocks(desc->desc, to_channel(channel), block, blocks,
					     request_done, request);
}

int
shim_bdev_reset(shim_bdev_desc *desc, shim_channel *channel, struct shim_request *request)
{
	return spdk_bdev_reset(desc->desc, to_channel(channel), request_done, request);
}
