# The foreign functions for JAX: whether to build them, and by which headers.
#
# They need the headers of XLA's typed interface, which jaxlib brings along, and nothing of it to link
# with: the interface is a table of C functions that a program hands over. The interpreter is asked in
# isolated mode (-I): pip builds a package where its user's packages are hidden, by variables that this
# mode ignores.

# BNEXT_XLA_INCLUDE_DIR: the folder that has xla/ffi/api/ffi.h; looked for anew in every build, since
# environments come and go.
function(bnext_find_foreign_headers result)
  set(folder "${BNEXT_XLA_INCLUDE_DIR}")
  if(NOT folder)
    execute_process(
      COMMAND ${Python_EXECUTABLE} -I -c "import importlib.util, os; \
found = importlib.util.find_spec('jaxlib'); \
print(os.path.join(list(found.submodule_search_locations)[0], 'include') if found else '')"
      OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  set(${result} "${folder}" PARENT_SCOPE)
endfunction()

macro(bnext_without_foreign_functions reason)
  bnext_without(BNEXT_XLA "foreign functions for JAX" "${reason}" "")
  return()
endmacro()

# Sets BNEXT_XLA_HEADERS to their folder: empty where foreign functions are left out.
function(bnext_find_xla)
  set(BNEXT_XLA_HEADERS "" PARENT_SCOPE)
  if(NOT BNEXT_XLA MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "bnext: BNEXT_XLA: expected AUTO, ON or OFF, got ${BNEXT_XLA}")
  endif()
  if(BNEXT_XLA STREQUAL "OFF")
    return()
  endif()
  bnext_find_foreign_headers(folder)
  if(NOT folder)
    bnext_without_foreign_functions("${Python_EXECUTABLE} has no jaxlib, which brings the headers along \
(pip install jaxlib; or BNEXT_XLA_INCLUDE_DIR names their folder)")
  elseif(NOT EXISTS "${folder}/xla/ffi/api/ffi.h")
    bnext_without_foreign_functions("${folder} lacks xla/ffi/api/ffi.h")
  endif()
  message(STATUS "bnext: foreign functions for JAX by ${folder}")
  set(BNEXT_XLA_HEADERS "${folder}" PARENT_SCOPE)
endfunction()

# Adds foreign functions to a module, from sources: an object of its own, since the headers warn, and
# define a namespace xla.
function(bnext_add_foreign_functions module)
  if(NOT BNEXT_XLA_HEADERS)
    return()
  endif()
  list(TRANSFORM ARGN PREPEND ${PROJECT_SOURCE_DIR}/csrc/)
  add_library(${module}_xla OBJECT ${ARGN})
  target_include_directories(${module}_xla SYSTEM PRIVATE "${BNEXT_XLA_HEADERS}")
  target_include_directories(${module}_xla PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
  target_link_libraries(${module}_xla PRIVATE bnext_flags)
  target_link_libraries(${module} PRIVATE ${module}_xla)
endfunction()
