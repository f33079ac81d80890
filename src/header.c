/*-------------------------------------------------------------------------
 *
 * header.c
 *	  A request's headers, as whoever received it hands them on.
 *
 * They are a JSON object of strings, or of arrays of strings, as HTTP servers
 * have them.  Names are in any case.  A header that is there twice, by names that
 * differ in case or as an array of more than one, has no value: whoever else
 * reads the request may take the other one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "header.h"

/* names of headers are ASCII: no locale has a say in them */
static bool
is_name(const JsonbValue *key, const char *name)
{
	if (key->val.string.len != strlen(name))
		return false;
	for (int i = 0; i < key->val.string.len; i++)
	{
		if ((char) pg_ascii_tolower((unsigned char) key->val.string.val[i]) != name[i])
			return false;
	}
	return true;
}

/* a string, or the only one of an array; false: neither */
static bool
single_string(const JsonbValue *value, JsonbValue *string)
{
	JsonbContainer *array;
	JsonbValue *only;

	if (value->type == jbvString)
	{
		*string = *value;
		return true;
	}
	if (value->type != jbvBinary)
		return false;
	array = value->val.binary.data;
	if (!JsonContainerIsArray(array) || JsonContainerSize(array) != 1)
		return false;
	only = getIthJsonbValueFromContainer(array, 0);
	*string = *only;
	return string->type == jbvString;
}

/*
 * The value of a header, by its name in lower case; bytes lie within headers.
 * false: it is not there, there is more than one, or it is no string.
 */
bool
header_value(Jsonb *headers, const char *name, const char **bytes, int *length)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	item;
	JsonbValue	string = {0};
	int			found = 0;
	bool		is_string = false;

	if (!JB_ROOT_IS_OBJECT(headers))
		return false;
	iterator = JsonbIteratorInit(&headers->root);
	while ((token = JsonbIteratorNext(&iterator, &item, true)) != WJB_DONE)
	{
		if (token != WJB_KEY || !is_name(&item, name))
			continue;
		(void) JsonbIteratorNext(&iterator, &item, true);
		found++;
		is_string = single_string(&item, &string);
	}
	if (found != 1 || !is_string)
		return false;
	*bytes = string.val.string.val;
	*length = string.val.string.len;
	return true;
}
