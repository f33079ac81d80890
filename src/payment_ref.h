/*-------------------------------------------------------------------------
 *
 * payment_ref.h
 *	  When a payment's provider_ref is the provider's own.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_PAYMENT_REF_H
#define CUSOWN_PAYMENT_REF_H

/*
 * Until the provider's reference is known the application has a placeholder in
 * its place, pending- with a number, and then the payment's own id.  For
 * templates; payment_evidence.c says the same of an argument.
 */
#define PAYMENT_REF_PLACEHOLDER "'^pending-[0-9]*$'"

#define PAYMENT_REF_IS_NAMED(alias) \
	"(" alias ".{payments.provider_ref} <> ''" \
	" AND " alias ".{payments.provider_ref}::text !~ " PAYMENT_REF_PLACEHOLDER ")"

#define PAYMENT_REF_IS_REAL(alias) \
	"(" PAYMENT_REF_IS_NAMED(alias) \
	" AND pg_catalog.lower(" alias ".{payments.provider_ref}::text)" \
	" <> " alias ".{payments.id}::text)"

#endif							/* CUSOWN_PAYMENT_REF_H */
