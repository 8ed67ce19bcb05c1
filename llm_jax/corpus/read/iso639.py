"""ISO 639: the short code of a language that has a long one."""

# ISO 639-3:639-1 of the languages that web crawls name.
_CODES = (
    'aar:aa abk:ab afr:af aka:ak amh:am ara:ar asm:as aze:az bak:ba bel:be ben:bn bis:bi bod:bo bos:bs bre:br '
    'bul:bg cat:ca ces:cs cor:kw cos:co cym:cy dan:da deu:de div:dv dzo:dz ell:el eng:en epo:eo est:et eus:eu '
    'ewe:ee fao:fo fas:fa fij:fj fin:fi fra:fr fry:fy gla:gd gle:ga glg:gl grn:gn guj:gu hat:ht hau:ha heb:he '
    'hin:hi hrv:hr hun:hu hye:hy ibo:ig iku:iu ile:ie ina:ia ind:id ipk:ik isl:is ita:it jav:jv jpn:ja kal:kl '
    'kan:kn kas:ks kat:ka kaz:kk khm:km kin:rw kir:ky kor:ko kur:ku lao:lo lat:la lav:lv lin:ln lit:lt ltz:lb '
    'lug:lg mal:ml mar:mr mkd:mk mlg:mg mlt:mt mon:mn mri:mi msa:ms mya:my nau:na nep:ne nld:nl nno:nn nob:nb '
    'nor:no nya:ny oci:oc ori:or orm:om pan:pa pol:pl por:pt pus:ps que:qu roh:rm ron:ro run:rn rus:ru sag:sg '
    'san:sa sin:si slk:sk slv:sl smo:sm sna:sn snd:sd som:so sot:st spa:es sqi:sq srp:sr ssw:ss sun:su swa:sw '
    'swe:sv tam:ta tat:tt tel:te tgk:tg tgl:tl tha:th tir:ti ton:to tsn:tn tso:ts tuk:tk tur:tr uig:ug ukr:uk '
    'urd:ur uzb:uz ven:ve vie:vi vol:vo wol:wo xho:xh yid:yi yor:yo zha:za zho:zh zul:zu'
)
_SHORT = dict(pair.split(':') for pair in _CODES.split())


def shortest(code: str) -> str:
    """'eng' -> 'en'; a code without a shorter one as it is."""
    code = code.strip().lower()
    return _SHORT.get(code, code)
