/*
 * The double's configurations. What SPDK has too:
 *
 *   bdev_malloc_create {name, num_blocks, block_size}    bdev_malloc_delete {name}
 *   bdev_null_create {name, num_blocks, block_size}      bdev_null_delete {name}
 *   bdev_null_resize {name, new_size}                    (MiB)
 *   bdev_aio_create, bdev_uring_create {name, filename, block_size}    (the file is mapped)
 *   bdev_aio_delete, bdev_uring_delete {name}
 *   bdev_error_create {base_name}                        (a device EE_NAME in front of NAME)
 *   bdev_error_inject_error {name, io_type, error_type, num, nvme_sct, nvme_sc}
 *       ("failure", "nvme_failure" and "pending" only)
 *   bdev_error_resume_pending {name}                     bdev_error_delete {name}
 *   bdev_delay_create {base_bdev_name, name, avg_read_latency, avg_write_latency}
 *       (the other latencies are not looked at)
 *   bdev_delay_delete {name}
 *   bdev_nvme_attach_controller {name, trtype, traddr}   (a device NAMEn1 of 64 MiB, whose data
 *       stay at the address)
 *   bdev_nvme_detach_controller {name}
 *   bdev_nvme_set_options {enable_flush}    (true at first, as the shim sets it;
 *       looked at when the subsystems start)
 *   bdev_set_options, bdev_nvme_set_hotplug
 *       (accepted: nothing is looked for on devices, and none comes by itself)
 *
 * And what only the double has:
 *
 *   double_refuse {name, num}        the next requests to any device are refused with -ENOMEM
 *   double_vanish {name}             the device is gone: what waits at it is aborted, what is asked
 *                                    of it fails, and nobody waits for it to be closed
 *   double_pull {traddr}             the drive is pulled out: its device is gone as above, and it cannot
 *                                    be attached
 *   double_plug {traddr, serial}     it is put back, or another with this serial number
 *   double_options {callbacks}       "now": ends are told before the function that began something
 *                                    has returned, wherever SPDK might do so; "later": never (as it
 *                                    is at first)
 */
#include "double.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of a drive that is attached. */
#define NVME_BLOCKS 131072
#define NVME_BLOCK_BYTES 512

/* Every parameter that some method knows. */
struct params {
	char name[JSON_STRING_BYTES];
	char base_name[JSON_STRING_BYTES];
	char base_bdev_name[JSON_STRING_BYTES];
	char filename[JSON_STRING_BYTES];
	char traddr[JSON_STRING_BYTES];
	char io_type[JSON_STRING_BYTES];
	char error_type[JSON_STRING_BYTES];
	char callbacks[JSON_STRING_BYTES];
	char serial[JSON_STRING_BYTES];
	uint64_t num_blocks;
	uint64_t block_size;
	uint64_t new_size;
	uint64_t num;
	uint64_t nvme_sct;
	uint64_t nvme_sc;
	uint64_t avg_read_latency;
	uint64_t avg_write_latency;
	bool enable_flush;
	/* The subsystems are starting. */
	bool at_start;
};

static bool
take_param(struct json *json, struct params *params)
{
	const struct {
		const char *name;
		char *text;
		uint64_t *number;
	} known[] = {
		{ "name", params->name, NULL },
		{ "base_name", params->base_name, NULL },
		{ "base_bdev_name", params->base_bdev_name, NULL },
		{ "filename", params->filename, NULL },
		{ "traddr", params->traddr, NULL },
		{ "io_type", params->io_type, NULL },
		{ "error_type", params->error_type, NULL },
		{ "callbacks", params->callbacks, NULL },
		{ "serial", params->serial, NULL },
		{ "num_blocks", NULL, &params->num_blocks },
		{ "block_size", NULL, &params->block_size },
		{ "new_size", NULL, &params->new_size },
		{ "num", NULL, &params->num },
		{ "nvme_sct", NULL, &params->nvme_sct },
		{ "nvme_sc", NULL, &params->nvme_sc },
		{ "avg_read_latency", NULL, &params->avg_read_latency },
		{ "avg_write_latency", NULL, &params->avg_write_latency },
	};
	char name[JSON_STRING_BYTES];

	if (!json_take_string(json, name) || !json_take(json, ':')) {
		return false;
	}
	if (strcmp(name, "enable_flush") == 0) {
		return json_take_bool(json, &params->enable_flush);
	}
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		if (strcmp(name, known[i].name) == 0) {
			return known[i].text != NULL ? json_take_string(json, known[i].text) :
			       json_take_number(json, known[i].number);
		}
	}
	return json_skip(json);
}

static bool
take_params(struct json *json, struct params *params)
{
	if (!json_take(json, '{')) {
		return false;
	}
	if (json_take(json, '}')) {
		return true;
	}
	do {
		if (!take_param(json, params)) {
			return false;
		}
	} while (json_take(json, ','));
	return json_take(json, '}');
}

/* --- Methods --------------------------------------------------------------------------------------- */

static int
create(const struct params *params, const char *module)
{
	struct double_bdev what = {
		.name = params->name,
		.module = module,
		.block_bytes = (uint32_t)params->block_size,
		.blocks = params->num_blocks,
	};

	return params->block_size > UINT32_MAX ? -EINVAL : double_bdev_create(&what);
}

static int
malloc_create(const struct params *params)
{
	return create(params, "malloc");
}

static int
null_create(const struct params *params)
{
	return create(params, "null");
}

static int
file_create(const struct params *params, const char *module)
{
	struct double_bdev what = {
		.name = params->name,
		.module = module,
		.block_bytes = params->block_size == 0 ? 512 : (uint32_t)params->block_size,
		.file = params->filename,
	};

	return params->block_size > UINT32_MAX ? -EINVAL : double_bdev_create(&what);
}

static int
aio_create(const struct params *params)
{
	return file_create(params, "aio");
}

static int
uring_create(const struct params *params)
{
	return file_create(params, "uring");
}

static int
error_create(const struct params *params)
{
	char name[JSON_STRING_BYTES + 4];

	snprintf(name, sizeof(name), "EE_%s", params->base_name);
	return double_bdev_create(&(struct double_bdev){
		.name = name, .module = "error", .base_name = params->base_name });
}

static int
delay_create(const struct params *params)
{
	return double_bdev_create(&(struct double_bdev){
		.name = params->name, .module = "delay", .base_name = params->base_bdev_name,
		.read_us = params->avg_read_latency, .write_us = params->avg_write_latency });
}

static void
nvme_name(const struct params *params, char name[JSON_STRING_BYTES + 4])
{
	snprintf(name, JSON_STRING_BYTES + 4, "%sn1", params->name);
}

static int
nvme_attach(const struct params *params)
{
	char name[JSON_STRING_BYTES + 4];

	if (params->name[0] == '\0' || params->traddr[0] == '\0') {
		return -EINVAL;
	}
	nvme_name(params, name);
	return double_bdev_create(&(struct double_bdev){
		.name = name, .module = "nvme", .medium = params->traddr,
		.block_bytes = NVME_BLOCK_BYTES, .blocks = NVME_BLOCKS });
}

static int
accept_params(const struct params *params)
{
	(void)params;
	return 0;
}

static int
nvme_set_options(const struct params *params)
{
	/* Later, what is allowed before the subsystems begin is passed over. */
	if (params->at_start) {
		double_flush_drives(params->enable_flush);
	}
	return 0;
}

static int
null_resize(const struct params *params)
{
	uint64_t bytes;

	if (__builtin_mul_overflow(params->new_size, 1024 * 1024, &bytes)) {
		return -EINVAL;
	}
	return double_bdev_resize(params->name, bytes);
}

static int
inject_error(const struct params *params)
{
	static const struct {
		const char *name;
		uint32_t operations;
	} types[] = {
		{ "read", SHIM_BDEV_READ },
		{ "write", SHIM_BDEV_WRITE },
		{ "flush", SHIM_BDEV_FLUSH },
		{ "unmap", SHIM_BDEV_UNMAP },
		{ "all", SHIM_BDEV_READ | SHIM_BDEV_WRITE | SHIM_BDEV_FLUSH | SHIM_BDEV_UNMAP },
		{ "clear", 0 },
	};
	struct double_fault fault = { .count = params->num == 0 ? 1 : params->num };

	if (strcmp(params->error_type, "failure") == 0) {
		fault.status = 0x006;
	} else if (strcmp(params->error_type, "nvme_failure") == 0) {
		fault.status = (uint16_t)((params->nvme_sct & 0x7) << 8 | (params->nvme_sc & 0xff));
	} else if (strcmp(params->error_type, "pending") == 0) {
		fault.kind = DOUBLE_FAULT_PENDING;
	} else {
		return -EINVAL;
	}
	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
		if (strcmp(params->io_type, types[i].name) == 0) {
			fault.operations = types[i].operations;
			return double_bdev_fault(params->name, "error", &fault);
		}
	}
	return -EINVAL;
}

static int
resume_pending(const struct params *params)
{
	return double_bdev_resume(params->name);
}

static int
refuse(const struct params *params)
{
	struct double_fault fault = {
		.kind = DOUBLE_FAULT_REFUSED,
		.operations = UINT32_MAX,
		.count = params->num == 0 ? 1 : params->num,
	};

	return double_bdev_fault(params->name, NULL, &fault);
}

static int
pull(const struct params *params)
{
	return double_drive_pull(params->traddr);
}

static int
plug(const struct params *params)
{
	return double_drive_plug(params->traddr, params->serial[0] == '\0' ? NULL : params->serial);
}

static int
set_options(const struct params *params)
{
	bool now = strcmp(params->callbacks, "now") == 0;

	if (!now && strcmp(params->callbacks, "later") != 0) {
		return -EINVAL;
	}
	g_double_tells_at_once = now;
	return 0;
}

/* Methods that end at once. */
static const struct {
	const char *name;
	int (*call)(const struct params *params);
} g_methods[] = {
	{ "bdev_malloc_create", malloc_create },
	{ "bdev_null_create", null_create },
	{ "bdev_null_resize", null_resize },
	{ "bdev_aio_create", aio_create },
	{ "bdev_uring_create", uring_create },
	{ "bdev_error_create", error_create },
	{ "bdev_error_inject_error", inject_error },
	{ "bdev_error_resume_pending", resume_pending },
	{ "bdev_delay_create", delay_create },
	{ "bdev_nvme_attach_controller", nvme_attach },
	{ "bdev_set_options", accept_params },
	{ "bdev_nvme_set_options", nvme_set_options },
	{ "bdev_nvme_set_hotplug", accept_params },
	{ "double_refuse", refuse },
	{ "double_pull", pull },
	{ "double_plug", plug },
	{ "double_options", set_options },
};

/* Methods that end when everybody has closed a device of this module. */
static const struct {
	const char *name;
	const char *module;
} g_removals[] = {
	{ "bdev_malloc_delete", "malloc" },
	{ "bdev_null_delete", "null" },
	{ "bdev_aio_delete", "aio" },
	{ "bdev_uring_delete", "uring" },
	{ "bdev_error_delete", "error" },
	{ "bdev_delay_delete", "delay" },
	{ "bdev_nvme_detach_controller", "nvme" },
};

/* --- Configurations -------------------------------------------------------------------------------- */

/* The methods of a configuration, one after the other, as some of them end later. */
struct load {
	char *text;
	struct json json;
	/* Inside the list of methods of a subsystem. */
	bool in_config;
	bool begun;
	bool at_start;
	shim_done_fn done;
	void *context;
};

static void load_on(struct load *load);

static void
load_end(struct load *load, int rc)
{
	shim_done_fn done = load->done;
	void *context = load->context;

	if (rc != 0) {
		double_log(SHIM_LOG_ERROR, "configuration failed at byte %zu: %s",
			   (size_t)(load->json.at - load->text), strerror(-rc));
	}
	free(load->text);
	free(load);
	double_tell(done, context, rc);
}

static void
load_went_on(void *context, int rc)
{
	if (rc != 0) {
		load_end(context, rc);
	} else {
		load_on(context);
	}
}

/* Removes a device; the load goes on when it is closed. */
static int
remove_device(struct load *load, const char *module, const struct params *params)
{
	char name[JSON_STRING_BYTES + 4];

	if (strcmp(module, "nvme") != 0) {
		return double_bdev_remove(params->name, module, load_went_on, load);
	}
	nvme_name(params, name);
	return double_bdev_remove(name, module, load_went_on, load);
}

/* Gives true when the method has ended, false when `load_went_on` will be told. */
static bool
call(struct load *load, const char *method, const struct params *params, int *rc)
{
	for (size_t i = 0; i < sizeof(g_methods) / sizeof(g_methods[0]); i++) {
		if (strcmp(method, g_methods[i].name) == 0) {
			*rc = g_methods[i].call(params);
			return true;
		}
	}
	for (size_t i = 0; i < sizeof(g_removals) / sizeof(g_removals[0]); i++) {
		if (strcmp(method, g_removals[i].name) == 0) {
			*rc = remove_device(load, g_removals[i].module, params);
			return *rc != 0;
		}
	}
	if (strcmp(method, "double_vanish") == 0) {
		*rc = double_bdev_remove(params->name, NULL, NULL, NULL);
		return true;
	}
	double_log(SHIM_LOG_ERROR, "the double does not know the method %s", method);
	*rc = -ENOENT;
	return true;
}

/* {"method": ..., "params": {...}}; false: the text is wrong. */
static bool
take_entry(struct json *json, char method[JSON_STRING_BYTES], struct params *params)
{
	char name[JSON_STRING_BYTES];

	method[0] = '\0';
	if (!json_take(json, '{')) {
		return false;
	}
	do {
		bool taken;

		if (!json_take_string(json, name) || !json_take(json, ':')) {
			return false;
		}
		if (strcmp(name, "method") == 0) {
			taken = json_take_string(json, method);
		} else if (strcmp(name, "params") == 0) {
			taken = take_params(json, params);
		} else {
			taken = json_skip(json);
		}
		if (!taken) {
			return false;
		}
	} while (json_take(json, ','));
	return json_take(json, '}') && method[0] != '\0';
}

/* Up to the first method of a subsystem: {"subsystem": ..., "config": [ ; -1: wrong, 0: none there. */
static int
enter_subsystem(struct json *json)
{
	char name[JSON_STRING_BYTES];

	if (!json_take(json, '{')) {
		return -1;
	}
	do {
		if (!json_take_string(json, name) || !json_take(json, ':')) {
			return -1;
		}
		if (strcmp(name, "config") == 0) {
			if (json_take(json, '[')) {
				return 1;
			}
			if (!json_skip(json)) {
				return -1;
			}
		} else if (!json_skip(json)) {
			return -1;
		}
	} while (json_take(json, ','));
	return json_take(json, '}') ? 0 : -1;
}

/* What may follow "config" in a subsystem. */
static bool
leave_subsystem(struct json *json)
{
	char name[JSON_STRING_BYTES];

	while (json_take(json, ',')) {
		if (!json_take_string(json, name) || !json_take(json, ':') || !json_skip(json)) {
			return false;
		}
	}
	return json_take(json, '}');
}

/* To the next method. 1: there is one, 0: the end, -1: the text is wrong. */
static int
next_method(struct load *load)
{
	struct json *json = &load->json;
	char name[JSON_STRING_BYTES];
	bool first = false;

	if (!load->begun) {
		load->begun = true;
		first = true;
		if (!json_take(json, '{') || !json_take_string(json, name) || strcmp(name, "subsystems") != 0 ||
		    !json_take(json, ':') || !json_take(json, '[')) {
			return -1;
		}
	}
	for (;;) {
		int entered;

		if (load->in_config) {
			if (!json_take(json, ']')) {
				/* The separator is taken by who has just read a method. */
				return 1;
			}
			load->in_config = false;
			if (!leave_subsystem(json)) {
				return -1;
			}
		}
		if (json_take(json, ']')) {
			return json_take(json, '}') ? 0 : -1;
		}
		if (!first && !json_take(json, ',')) {
			return -1;
		}
		first = false;
		entered = enter_subsystem(json);
		if (entered < 0) {
			return -1;
		}
		load->in_config = entered == 1;
	}
}

static void
load_on(struct load *load)
{
	for (;;) {
		struct params params = {
			.enable_flush = double_flushes_drives(),
			.at_start = load->at_start,
		};
		char method[JSON_STRING_BYTES];
		int rc = 0;
		int next = next_method(load);

		if (next <= 0) {
			load_end(load, next == 0 ? 0 : -EINVAL);
			return;
		}
		if (!take_entry(&load->json, method, &params)) {
			load_end(load, -EINVAL);
			return;
		}
		json_take(&load->json, ',');
		if (!call(load, method, &params, &rc)) {
			/* It goes on when the method has ended, or has done so already. */
			return;
		}
		if (rc != 0) {
			double_log(SHIM_LOG_ERROR, "%s: %s", method, strerror(-rc));
			load_end(load, rc);
			return;
		}
	}
}

static void
begin_load(const char *text, size_t bytes, bool at_start, shim_done_fn done, void *context)
{
	struct load *load = calloc(1, sizeof(*load));

	if (load != NULL) {
		load->text = malloc(bytes + 1);
	}
	if (load == NULL || load->text == NULL) {
		free(load);
		done(context, -ENOMEM);
		return;
	}
	memcpy(load->text, text, bytes);
	load->json.at = load->text;
	load->json.end = load->text + bytes;
	load->at_start = at_start;
	load->done = done;
	load->context = context;
	double_tell(load_went_on, load, 0);
}

void
shim_configure(const char *json, size_t json_bytes, shim_done_fn done, void *context)
{
	begin_load(json, json_bytes, false, done, context);
}

void
shim_subsystems_start(const char *json, size_t json_bytes, shim_done_fn done, void *context)
{
	if (json == NULL) {
		double_tell(done, context, 0);
		return;
	}
	begin_load(json, json_bytes, true, done, context);
}

void
shim_subsystems_stop(shim_done_fn done, void *context)
{
	double_bdev_end();
	double_tell(done, context, 0);
}
