/* The double's requests. */
#include "bdev.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Requests that a channel takes at once. */
#define CHANNEL_REQUESTS_MAX 1024

#define STATUS_SUCCESS 0x000
#define STATUS_INTERNAL 0x006
#define STATUS_ABORTED 0x007
#define STATUS_MISCOMPARE 0x285

/* Operations that SPDK's device for errors looks at. */
#define FAULTY (SHIM_BDEV_READ | SHIM_BDEV_WRITE | SHIM_BDEV_UNMAP | SHIM_BDEV_FLUSH)

/* A request that was made. */
struct asked {
	struct shim_bdev_desc *desc;
	struct shim_channel *channel;
	uint32_t operation;
	uint64_t block;
	uint64_t blocks;
	const struct shim_slice *slices;
	uint32_t slice_count;
	/* Of compare-and-write; what is compared is in `slices`. */
	const struct shim_slice *write;
	uint32_t write_count;
	struct shim_request *request;
};

/* A request that was accepted. */
struct running {
	struct running *next;
	struct asked asked;
	struct double_timer timer;
	uint64_t delay_us;
	uint16_t status;
};

static void
tell_request(void *context)
{
	struct running running = *(struct running *)context;

	free(context);
	running.asked.channel->running--;
	running.asked.request->done(running.asked.request->context, running.status);
}

static void
start_timer(void *context)
{
	struct running *running = context;

	running->timer.run = tell_request;
	running->timer.context = running;
	running->timer.due_us = double_now_us() + running->delay_us;
	double_timer_add(&running->timer);
}

/* Never within the function that made the request. */
static void
finish(struct running *running)
{
	shim_message_fn next = running->delay_us > 0 ? start_timer : tell_request;

	if (shim_thread_send(running->asked.channel->thread, next, running) != 0) {
		abort();
	}
}

void
double_finish_all(struct running *list)
{
	while (list != NULL) {
		struct running *running = list;

		list = running->next;
		finish(running);
	}
}

static bool
covers(const struct asked *asked, const struct shim_slice *slices, uint32_t count)
{
	uint64_t bytes = 0, wanted;

	for (uint32_t i = 0; i < count; i++) {
		if (__builtin_add_overflow(bytes, slices[i].bytes, &bytes)) {
			return false;
		}
	}
	return !__builtin_mul_overflow(asked->blocks, asked->desc->bdev->block_bytes, &wanted) &&
	       bytes == wanted;
}

/* What is not accepted at all. */
static int
check(const struct asked *asked)
{
	static const uint32_t on_readers = SHIM_BDEV_READ | SHIM_BDEV_COMPARE | SHIM_BDEV_RESET;
	static const uint32_t with_slices = SHIM_BDEV_READ | SHIM_BDEV_WRITE | SHIM_BDEV_COMPARE |
					    SHIM_BDEV_COMPARE_AND_WRITE;
	const struct bdev *bdev = asked->desc->bdev;
	struct shim_bdev_info info;

	if ((asked->operation & on_readers) == 0 && !asked->desc->writer) {
		return -EBADF;
	}
	double_describe(bdev, &info);
	if ((info.operations & asked->operation) == 0) {
		return -ENOTSUP;
	}
	if (asked->operation == SHIM_BDEV_RESET) {
		return 0;
	}
	if ((asked->blocks == 0 && asked->operation != SHIM_BDEV_FLUSH) ||
	    asked->block > bdev->blocks || asked->blocks > bdev->blocks - asked->block) {
		return -EINVAL;
	}
	if ((asked->operation & with_slices) != 0 &&
	    !covers(asked, asked->slices, asked->slice_count)) {
		return -EINVAL;
	}
	if (asked->operation == SHIM_BDEV_COMPARE_AND_WRITE &&
	    (asked->blocks > info.compare_and_write_blocks ||
	     !covers(asked, asked->write, asked->write_count))) {
		return -EINVAL;
	}
	return 0;
}

static void
fill(uint8_t *place, const struct shim_slice *slices, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		memcpy(place, slices[i].base, slices[i].bytes);
		place += slices[i].bytes;
	}
}

static void
fetch(const uint8_t *place, const struct shim_slice *slices, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		if (place != NULL) {
			memcpy(slices[i].base, place, slices[i].bytes);
			place += slices[i].bytes;
		} else {
			memset(slices[i].base, 0, slices[i].bytes);
		}
	}
}

static bool
is_equal(const uint8_t *place, const struct shim_slice *slices, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		if (memcmp(place, slices[i].base, slices[i].bytes) != 0) {
			return false;
		}
		place += slices[i].bytes;
	}
	return true;
}

/* With the lock held: what the medium does. */
static uint16_t
carry_out(const struct asked *asked, const struct bdev *bottom)
{
	uint8_t *place = NULL;

	if (bottom->medium != NULL) {
		place = bottom->medium->data + asked->block * bottom->block_bytes;
	}
	if (asked->operation == SHIM_BDEV_READ) {
		fetch(place, asked->slices, asked->slice_count);
	}
	if (place == NULL) {
		return STATUS_SUCCESS;
	}
	switch (asked->operation) {
	case SHIM_BDEV_WRITE:
		fill(place, asked->slices, asked->slice_count);
		break;
	case SHIM_BDEV_UNMAP:
	case SHIM_BDEV_WRITE_ZEROES:
		memset(place, 0, asked->blocks * bottom->block_bytes);
		break;
	case SHIM_BDEV_COMPARE:
	case SHIM_BDEV_COMPARE_AND_WRITE:
		if (!is_equal(place, asked->slices, asked->slice_count)) {
			return STATUS_MISCOMPARE;
		}
		fill(place, asked->write, asked->write_count);
		break;
	default:
		break;
	}
	return STATUS_SUCCESS;
}

/* With the lock held. Whether a fault of the device is for this request. */
static bool
take_fault(struct bdev *bdev, const struct asked *asked)
{
	if (bdev->fault.count == 0 || (bdev->fault.operations & asked->operation) == 0) {
		return false;
	}
	bdev->fault.count--;
	return true;
}

static uint64_t
delay_of(const struct bdev *bdev, uint32_t operation)
{
	return operation == SHIM_BDEV_READ ? bdev->read_us :
	       (operation & FAULTY) != 0 ? bdev->write_us : 0;
}

/* Behind those that wait already. */
static void
append(struct running **list, struct running *running)
{
	while (*list != NULL) {
		list = &(*list)->next;
	}
	running->next = NULL;
	*list = running;
}

/*
 * With the lock held: through the devices in front to the medium. False: it stays at one of them.
 */
static bool
go_down(struct running *running)
{
	const struct asked *asked = &running->asked;
	struct bdev *bdev = asked->desc->bdev;

	for (;;) {
		if (bdev->vanished) {
			running->status = STATUS_INTERNAL;
			return true;
		}
		if (bdev->fault.kind != DOUBLE_FAULT_REFUSED && take_fault(bdev, asked)) {
			running->status = bdev->fault.status;
			if (bdev->fault.kind == DOUBLE_FAULT_PENDING) {
				append(&bdev->pending, running);
				return false;
			}
			return true;
		}
		running->delay_us += delay_of(bdev, asked->operation);
		if (bdev->base == NULL) {
			running->status = carry_out(asked, bdev);
			return true;
		}
		bdev = bdev->base;
	}
}

void
double_abort_pending(struct bdev *bdev, struct running **aborted)
{
	for (; bdev != NULL; bdev = bdev->base) {
		while (bdev->pending != NULL) {
			struct running *running = bdev->pending;

			bdev->pending = running->next;
			running->status = STATUS_ABORTED;
			append(aborted, running);
		}
	}
}

/* With the lock held. Puts on `ended` what ends with it. */
static int
accept(struct running *running, struct running **ended)
{
	const struct asked *asked = &running->asked;
	struct bdev *bdev = asked->desc->bdev;
	int rc = check(asked);

	if (rc != 0) {
		return rc;
	}
	if (bdev->fault.kind == DOUBLE_FAULT_REFUSED && take_fault(bdev, asked)) {
		return -ENOMEM;
	}
	asked->channel->running++;
	if (asked->operation == SHIM_BDEV_RESET) {
		double_abort_pending(bdev, ended);
		running->status = bdev->vanished ? STATUS_INTERNAL : STATUS_SUCCESS;
		append(ended, running);
	} else if (go_down(running)) {
		append(ended, running);
	}
	return 0;
}

static int
submit(const struct asked *asked)
{
	struct running *ended = NULL;
	struct running *running;
	int rc;

	if (asked->channel->running >= CHANNEL_REQUESTS_MAX) {
		return -ENOMEM;
	}
	running = calloc(1, sizeof(*running));
	if (running == NULL) {
		return -ENOMEM;
	}
	running->asked = *asked;
	pthread_mutex_lock(&g_double_lock);
	rc = accept(running, &ended);
	pthread_mutex_unlock(&g_double_lock);
	if (rc != 0) {
		free(running);
	}
	double_finish_all(ended);
	return rc;
}

int
double_bdev_resume(const char *name)
{
	struct running *ended = NULL;
	struct running *pending;
	struct bdev *bdev;

	pthread_mutex_lock(&g_double_lock);
	bdev = double_find_bdev(name);
	if (bdev != NULL) {
		pending = bdev->pending;
		bdev->pending = NULL;
		bdev->fault.count = 0;
		while (pending != NULL) {
			struct running *running = pending;

			pending = running->next;
			if (go_down(running)) {
				append(&ended, running);
			}
		}
	}
	pthread_mutex_unlock(&g_double_lock);
	double_finish_all(ended);
	return bdev == NULL ? -ENODEV : 0;
}

int
shim_bdev_read(shim_bdev_desc *desc, shim_channel *channel, const struct shim_slice *slices,
	       uint32_t slice_count, uint64_t block, uint64_t blocks, struct shim_request *request)
{
	return submit(&(struct asked){ desc, channel, SHIM_BDEV_READ, block, blocks, slices, slice_count,
				       NULL, 0, request });
}

int
shim_bdev_write(shim_bdev_desc *desc, shim_channel *channel, const struct shim_slice *slices,
		uint32_t slice_count, uint64_t block, uint64_t blocks, struct shim_request *request)
{
	return submit(&(struct asked){ desc, channel, SHIM_BDEV_WRITE, block, blocks, slices,
				       slice_count, NULL, 0, request });
}

int
shim_bdev_compare(shim_bdev_desc *desc, shim_channel *channel, const struct shim_slice *slices,
		  uint32_t slice_count, uint64_t block, uint64_t blocks, struct shim_request *request)
{
	return submit(&(struct asked){ desc, channel, SHIM_BDEV_COMPARE, block, blocks, slices,
				       slice_count, NULL, 0, request });
}

int
shim_bdev_compare_and_write(shim_bdev_desc *desc, shim_channel *channel,
			    const struct shim_slice *compare, uint32_t compare_count,
			    const struct shim_slice *write, uint32_t write_count, uint64_t block,
			    uint64_t blocks, struct shim_request *request)
{
	return submit(&(struct asked){ desc, channel, SHIM_BDEV_COMPARE_AND_WRITE, block, blocks,
				       compare, compare_count, write, write_count, request });
}

int
shim_bdev_flush(shim_bdev_desc *desc, shim_channel *channel, uint64_t block, uint64_t blocks,
		struct shim_request *request)
{
	return submit(&(struct asked){ desc, channel, SHIM_BDEV_FLUSH, block, blocks, NULL, 0, NULL, 0,
				       request });
}

int
shim_bdev_unmap(shim_bdev_desc *desc, shim_channel *channel, uint64_t block, uint64_t blocks,
		struct shim_request *request)
{
	return submit(&(struct asked){ desc, channel, SHIM_BDEV_UNMAP, block, blocks, NULL, 0, NULL, 0,
				       request });
}

int
shim_bdev_write_zeroes(shim_bdev_desc *desc, shim_channel *channel, uint64_t block,
		       uint64_t blocks, struct shim_request *request)
{
	return submit(&(struct asked){ desc, channel, SHIM_BDEV_WRITE_ZEROES, block, blocks, NULL, 0,
				       NULL, 0, request });
}

int
shim_bdev_reset(shim_bdev_desc *desc, shim_channel *channel, struct shim_request *request)
{
	return submit(&(struct asked){ desc, channel, SHIM_BDEV_RESET, 0, 0, NULL, 0, NULL, 0,
				       request });
}
