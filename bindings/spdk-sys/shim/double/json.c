/* Reads as much of JSON as configurations need. */
#include "double.h"

#include <string.h>

#define JSON_DEPTH_MAX 32

static void
skip_space(struct json *json)
{
	while (json->at < json->end && strchr(" \t\r\n", *json->at) != NULL) {
		json->at++;
	}
}

bool
json_take(struct json *json, char wanted)
{
	skip_space(json);
	if (json->at < json->end && *json->at == wanted) {
		json->at++;
		return true;
	}
	return false;
}

/* What does not fit, or escapes other than the plain ones, is an error. */
bool
json_take_string(struct json *json, char out[JSON_STRING_BYTES])
{
	size_t length = 0;

	if (!json_take(json, '"')) {
		return false;
	}
	while (json->at < json->end && *json->at != '"') {
		char byte = *json->at++;

		if (byte == '\\') {
			if (json->at == json->end || strchr("\"\\/", *json->at) == NULL) {
				return false;
			}
			byte = *json->at++;
		}
		if (length + 1 >= JSON_STRING_BYTES) {
			return false;
		}
		out[length++] = byte;
	}
	out[length] = '\0';
	return json_take(json, '"');
}

bool
json_take_bool(struct json *json, bool *out)
{
	static const char *const words[] = { "false", "true" };

	skip_space(json);
	for (size_t i = 0; i < 2; i++) {
		size_t length = strlen(words[i]);

		if ((size_t)(json->end - json->at) >= length && memcmp(json->at, words[i], length) == 0) {
			json->at += length;
			*out = i == 1;
			return true;
		}
	}
	return false;
}

bool
json_take_number(struct json *json, uint64_t *out)
{
	uint64_t value = 0;
	bool any = false;

	skip_space(json);
	while (json->at < json->end && *json->at >= '0' && *json->at <= '9') {
		if (__builtin_mul_overflow(value, 10, &value) ||
		    __builtin_add_overflow(value, (uint64_t)(*json->at - '0'), &value)) {
			return false;
		}
		json->at++;
		any = true;
	}
	*out = value;
	return any;
}

static bool skip_value(struct json *json, unsigned depth);

/* The rest of a list or an object whose opening was taken. */
static bool
skip_members(struct json *json, char close, bool named, unsigned depth)
{
	char name[JSON_STRING_BYTES];

	if (json_take(json, close)) {
		return true;
	}
	do {
		if (named && !(json_take_string(json, name) && json_take(json, ':'))) {
			return false;
		}
		if (!skip_value(json, depth)) {
			return false;
		}
	} while (json_take(json, ','));
	return json_take(json, close);
}

static bool
skip_value(struct json *json, unsigned depth)
{
	char text[JSON_STRING_BYTES];
	const char *begin;

	if (depth >= JSON_DEPTH_MAX) {
		return false;
	}
	if (json_take(json, '{')) {
		return skip_members(json, '}', true, depth + 1);
	}
	if (json_take(json, '[')) {
		return skip_members(json, ']', false, depth + 1);
	}
	skip_space(json);
	if (json->at < json->end && *json->at == '"') {
		return json_take_string(json, text);
	}
	/* A number, true, false or null. */
	begin = json->at;
	while (json->at < json->end && strchr("+-.0123456789aeflnrstuE", *json->at) != NULL) {
		json->at++;
	}
	return json->at > begin;
}

bool
json_skip(struct json *json)
{
	return skip_value(json, 0);
}
